"""What a script has instead of the package's: its settings are fixed, nothing in it draws a page, and what is looked up by
name there is named here."""

from dataclasses import replace

from pgolf.artifact.merge import Binding
from pgolf.artifact.rounding import FORMS
from pgolf.config import Settings, changed
from pgolf.config.adaptation import CHUNK_ADAPTERS
from pgolf.config.predictors import HONEST_PREDICTORS
from pgolf.kernels.newton_schulz.op import TABLES

NOTHING = "lambda *_, **__: {result}"

# what only people and the report read
QUIET = {
    ("pgolf.artifact.losses", "rounding_losses"): "[]",
    ("pgolf.evaluation.records", "write_top_predictions"): "None",
    ("pgolf.evaluation.records", "write_traces"): "None",
    ("pgolf.score_log", "write_scores"): "None",
    ("pgolf.cli.common", "progress_on"): "None",
    ("pgolf.cli.score", "compressors"): "{}",
    ("pgolf.compressors", "standing"): "None",
    ("pgolf.evaluation.records", "paired_gain"): "(None, None)",
    ("pgolf.cli.train", "validation_of"): "None",
    ("pgolf.cli.train", "peak_memory"): "None",
    ("pgolf.evaluation.top_predictions", "excerpts"): "[]",
}


FROM_TABLE = """
def from_table(table, base, where):
    known = {k: v for k, v in table.items() if hasattr(base, k)}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items() if not isinstance(v, dict)}
    nested = {k: from_table(v, getattr(base, k), k) for k, v in known.items() if isinstance(v, dict)}
    return dataclasses.replace(base, **plain, **nested)
"""
TO_TOML = """
def to_toml(settings):
    import json
    tables, lines = [("", dataclasses.asdict(settings))], []
    for name, table in tables:
        lines += [f"[{name}]"] * bool(name)
        for key, value in table.items():
            if isinstance(value, dict):
                tables.append((f"{name}.{key}".strip("."), value))
            else:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\\n".join(lines) + "\\n"
"""
READ_SUMMARY = """
def read_summary(path):
    kinds = {"corpus": Corpus, "train": Train, "artifact": ArtifactSize, "scoring": Scoring}
    table = json.loads(path.read_text()) if path.exists() else {}
    return Summary(**{name: kinds[name](**part) if name in kinds else part for name, part in table.items()})
"""
READ_TOML = """
def read_toml(path):
    return from_table(tomllib.loads(path.read_text()), Settings(), path)
"""
# files that the script itself has written
SPLIT_SECTIONS = """
def split_sections(data, where):
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise ArtifactError(f"{where} is damaged")
    at, sizes, sections = len(MAGIC) + 4, [], {}
    for _ in range(struct.unpack_from("<H", data, at - 2)[0]):
        name = data[at + 1 : at + 1 + data[at]]
        at += 9 + len(name)
        sizes.append((name.decode(), struct.unpack_from("<Q", data, at - 8)[0]))
    for name, size in sizes:
        sections[name] = data[at : at + size]
        at += size
    return sections
"""
LOAD_WEIGHTS = """
def load_weights(path, model):
    model.load_state_dict(load_file(path))
"""
IMPORT_CHECKPOINT = """
def import_checkpoint(model, state):
    own = unbank(model.state_dict())
    for name, tensor in unbank(state).items():
        if name in own:
            own[name].copy_(tensor)
"""


def replacements(settings: Settings) -> dict[Binding, str]:
    """Statements for what the package finds out at run time."""
    found = {binding: f"{binding[1]} = {NOTHING.format(result=result)}" for binding, result in QUIET.items()}
    honest = {name: HONEST_PREDICTORS[name] for name in settings.evaluation.mixer.honest}
    imports = "".join(f" from pgolf.evaluation.predictors.{one.module} import {one.cls}\n" for one in honest.values())
    table = ", ".join(f"{name!r}: {one.cls}" for name, one in honest.items())
    scan = "scan" if settings.model.scan_layers else "None"
    form = FORMS[settings.artifact.rounding]
    functions = {name: getattr(form, name) for name in ("matrix", "calibrated", "embedding")}
    named = {name: f"{'gptq.' * f.__module__.endswith('gptq')}{f.__name__}" if f else "None" for name, f in functions.items()}
    adapter = CHUNK_ADAPTERS.get(settings.evaluation.adaptation.method)
    found["pgolf.evaluation.scoring_pass", "make_adapter"] = (
        "def make_adapter(model, settings, byte_table, world=None):\n"
        f" from pgolf.evaluation.adaptation.{adapter[0]} import {adapter[1]}\n"
        " options = dict(sequence_length=settings.window, byte_table=byte_table, world=world)\n"
        f" return {adapter[1]}(model, settings.adaptation, **options)"
        if adapter
        else "make_adapter = lambda *_: None"
    )
    coefficients = settings.training.muon_coefficients
    rounding = f"{named['matrix']}, {named['calibrated']}, {named['embedding']}, {form.by_sigma}"
    return found | {
        (
            "pgolf.evaluation.predictors.selection",
            "honest_class",
        ): f"def honest_class(name):\n{imports} return {{{table}}}[name]",
        (
            "pgolf.model.operators",
            "OPERATORS",
        ): f"OPERATORS = {{'kernels': Operators(attention, rotary, mlp, linear_cross_entropy, {scan}, False)}}",
        ("pgolf.artifact.rounding", "FORMS"): f"FORMS = {{{settings.artifact.rounding!r}: RoundingForm({rounding})}}",
        (
            "pgolf.cli.driver",
            "FROZEN",
        ): f"FROZEN = {changed(replace(settings, seed=Settings.seed, description=''), Settings())!r}",
        ("pgolf.config.load", "from_table"): FROM_TABLE,
        ("pgolf.summary", "read_summary"): READ_SUMMARY,
        ("pgolf.config.load", "to_toml"): TO_TOML,
        ("pgolf.config.load", "read_toml"): READ_TOML,
        ("pgolf.kernels.launch", "RANGES"): "RANGES = False",
        ("pgolf.kernels.newton_schulz.op", "TABLES"): f"TABLES = {{{coefficients!r}: {TABLES[coefficients]!r}}}",
        ("pgolf.artifact.code", "embedded"): "embedded = lambda: True",
        (
            "pgolf.artifact.code",
            "code_bytes",
        ): "def code_bytes(settings, device):\n import os\n return os.stat(os.environ['PGOLF_SCRIPT']).st_size",
        ("pgolf.cli.train", "TrainingNarrator"): NARRATOR,
        ("pgolf.artifact.container", "split_sections"): SPLIT_SECTIONS,
        ("pgolf.cli.pack", "load_weights"): LOAD_WEIGHTS,
        ("pgolf.model.checkpoint", "import_checkpoint"): IMPORT_CHECKPOINT,
        ("pgolf.sinks", "Sinks"): "def Sinks(*_, **__):\n import contextlib\n return contextlib.nullcontext()",
        ("pgolf.progress", "Display"): DISPLAY,
        (
            "pgolf.evaluation.top_predictions",
            "TopPredictions",
        ): "class TopPredictions(Observer):\n def __init__(self, *_):\n  pass",
        ("pgolf.artifact.pack", "_check_believable"): "_check_believable = lambda *_: None",
        # the bytes that it saves a GPU are fewer than those of its kernel in the script are worth
        ("pgolf.artifact.pack", "read_codes"): "read_codes = lambda *_: None",
    }


NARRATOR = """
class TrainingNarrator:
    def __init__(self, display, settings, sinks):
        self.display = display
    def __call__(self, event):
        self.display.event(event)
        if event["kind"] == "start":
            self.parameters = event["parameters"]
        elif event["kind"] == "step":
            self.display.status("step {step} loss {loss:.4f} at {elapsed:.0f} s".format(**event), 0)
"""
DISPLAY = """
class Display:
    def __init__(self, log=None, *, events=None, active=True):
        self.active, self._last = active, 0
        self._log, self._events = [open(f, "a", buffering=1) if f and active else None for f in (log, events)]
    def say(self, text):
        if self.active:
            print(text, flush=True)
            if self._log:
                self._log.write(text + "\\n")
    def event(self, event):
        if self._events:
            self._events.write(json.dumps(event) + "\\n")
    def status(self, text, done):
        if time.monotonic() > self._last + 5:
            self._last = time.monotonic()
            self.say(text)
    def settle(self):
        pass
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
"""
