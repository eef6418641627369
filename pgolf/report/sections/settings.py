"""Every setting of the run."""

from pgolf.report.charts import missing
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.sections.section import Section, lead


def body(run: Run) -> Html:
    if not run.config:
        return missing("No settings", "config.toml is missing or damaged.")
    tables = [h("details", h("summary", name), h("pre", text)) for name, text in _tables(run.config)]
    return join([lead("Every setting, as it was used."), *tables])


def _tables(config: dict, path: str = "") -> list[tuple[str, str]]:
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    tables = [(path or "run", "\n".join(f"{key} = {value}" for key, value in plain.items()))] if plain else []
    for key, value in config.items():
        if isinstance(value, dict):
            tables += _tables(value, f"{path}.{key}" if path else key)
    return tables


SECTION = Section("settings", "Settings", body)
