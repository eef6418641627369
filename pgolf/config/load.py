"""Settings from presets and TOML files, and back. Every key and type of a table is checked."""

import dataclasses
import tomllib
import typing
from pathlib import Path

import tomli_w

from pgolf.config.checks import SettingsError, nearest
from pgolf.config.settings import Settings
from pgolf.config.types import checked

PRESETS = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str, *, cuda: bool = False) -> Settings:
    """The settings of one preset. A file may hold a second, larger choice under [cuda], taken where there is a GPU."""
    if name not in preset_names():
        raise SettingsError(f"no preset {name!r}{nearest(name, preset_names())}; there are {', '.join(preset_names())}")
    try:
        table = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"preset {name}: {error}") from None
    larger = table.pop("cuda", {})
    settings = from_table(table, Settings(preset=name), f"preset {name}")
    return from_table(larger, settings, f"preset {name}, [cuda]") if cuda else settings


def from_table(table: dict, base, where: str):
    """`base` with the values of a (nested) table laid over it; every key and type is checked."""
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in table.items():
        if key not in hints:
            raise SettingsError(f"{where}: no setting {key!r}{nearest(key, hints)}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise SettingsError(f"{where}: {key} is a section, not a value")
            changes[key] = from_table(value, current, f"{where}, [{key}]")
        else:
            changes[key] = checked(value, hints[key], f"{where}: {key}")
    return dataclasses.replace(base, **changes)


def to_table(settings) -> dict:
    return dataclasses.asdict(settings)


def changed(settings, base) -> dict:
    """The (nested) table of what differs from `base`: laid over it by `from_table`, it gives `settings`."""
    table = {}
    for item in dataclasses.fields(settings):
        value, before = getattr(settings, item.name), getattr(base, item.name)
        if dataclasses.is_dataclass(value):
            value, before = changed(value, before), {}
        if value != before:
            table[item.name] = value
    return table


def scoring_table(settings: Settings) -> dict:
    """What a scorer has to know beside the weights, as it differs from the defaults: how to score, and what rounding
    training has left on in the network."""
    table = changed(settings, Settings())
    kept = {"evaluation": table.get("evaluation", {})}
    if settings.training.qat_threshold:
        rounding = {name: value for name, value in table["training"].items() if name.startswith("qat_")}
        kept["training"] = rounding
    return kept


def to_toml(settings: Settings) -> str:
    """The same settings as a TOML text that `read_toml` reads back unchanged."""
    return tomli_w.dumps(to_table(settings))


def read_toml(path: Path) -> Settings:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; is this a run folder?") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: {error}") from None
    settings = from_table(table, Settings(), str(path))
    settings.validate()
    return settings
