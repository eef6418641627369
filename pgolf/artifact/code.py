"""The code that is counted: the script of a run in its compact form, and the sources that its readable form carries."""

import ast
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pgolf
from pgolf.artifact.compact import compact_script, merged_module
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.rounding import FORMS
from pgolf.config import Settings, to_toml
from pgolf.config.adaptation import CHUNK_ADAPTERS
from pgolf.config.predictors import HONEST_PREDICTORS
from pgolf.files import CACHE, FileError, atomic_file

# the driver, and the stages that it loads by name
ROOTS = (
    "pgolf.run",
    *(f"pgolf.cli.{stage}" for stage in ("run", "train", "pack", "score", "show")),
    # for the counted form
    "pgolf.artifact.compact",
    "pgolf.cli.driver",
)
# what other stages need
LEFT_OUT = (
    "pgolf.artifact.export",
    "pgolf.artifact.script",
    "pgolf.data.fineweb",
    "pgolf.audit",
    "pgolf.cli.report",
    "pgolf.cli.study",
    "pgolf.evaluation.codec",
    "pgolf.kernels.compile",
    "pgolf.report",
    "pgolf.study",
)
KEPT = ("pgolf.report", "pgolf.report.tables")


def _gptq(settings: Settings) -> bool:
    return FORMS[settings.artifact.rounding].needs_hessians


def _backs_off(settings: Settings) -> bool:
    return "ngram_backoff" in settings.evaluation.mixer.honest


def _mixes(settings: Settings) -> bool:
    return "context_mixing" in settings.evaluation.mixer.honest


def _named(settings: Settings) -> list[str]:
    """Modules that settings name, and that are imported by their names: predictors, and what adapts between chunks."""
    modules = [f"pgolf.evaluation.predictors.{HONEST_PREDICTORS[name].module}" for name in settings.evaluation.mixer.honest]
    if settings.evaluation.adaptation.method in CHUNK_ADAPTERS:
        modules.append(f"pgolf.evaluation.adaptation.{CHUNK_ADAPTERS[settings.evaluation.adaptation.method][0]}")
    return modules


def _by_documents(settings: Settings) -> bool:
    return settings.evaluation.adaptation.method == "lora"


# packages and modules that a run imports only with such settings, where they are used
ENTERED: dict[str, Callable[[Settings], bool]] = {
    "pgolf.artifact.calibration": _gptq,
    "pgolf.artifact.fitting": lambda settings: settings.artifact.fit,
    "pgolf.evaluation.adaptation.lora": _by_documents,
    "pgolf.evaluation.predictors.ngram_backoff": _backs_off,
    "pgolf.evaluation.ngram_table": _backs_off,
    "pgolf.evaluation.mixing": _mixes,
    "pgolf.evaluation.predictors.context_mixing": _mixes,
    "pgolf.evaluation.primer": _mixes,
    "pgolf.kernels.lora": _by_documents,
    "pgolf.model.decoder": lambda settings: _gptq(settings) and settings.artifact.calibration == "generated",
}
PRESET = "submission"
# set by the script for the processes that it starts: where it lies
SCRIPT = "PGOLF_SCRIPT"


def embedded() -> Path | None:
    """The script that this code was unpacked from, if it was."""
    return Path(os.environ[SCRIPT]) if os.environ.get(SCRIPT) else None


def code_bytes(settings: Settings, device: str) -> int:
    """Bytes of the script for a run with these settings on "cuda" or "cpu"; inside a script, its own."""
    script = embedded()
    if script is None:
        return len(make_script(settings, device))
    try:
        return script.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{script} cannot be read: {error.strerror}") from None


@cache
def _made(settings: Settings, device: str) -> bytes:
    """Kept on disk as well: the compressor takes seconds, and every run counts its script."""
    digest = hashlib.sha256(_sources() + to_toml(settings).encode() + device.encode()).hexdigest()
    path = CACHE / "scripts" / digest
    try:
        return path.read_bytes()
    except OSError:
        script = compact_script(settings, device)
    with suppress(OSError, FileError), atomic_file(path) as file:
        file.write(script)
    return script


@cache
def _sources() -> bytes:
    """A digest of the package's sources, and of the Python that parses them."""
    digest = hashlib.sha256(sys.version.encode())
    for root in pgolf.__path__:
        for path in sorted(Path(root).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def make_script(settings: Settings, device: str) -> bytes:
    """The counted script: one file that trains, packs and scores with these settings on that kind of device. It is the same
    for every seed: which one it is, the environment says."""
    return _made(replace(settings, seed=Settings.seed), device)


def device_kind(device: str) -> str:
    """Of a device as a summary names it: "cpu" or "cuda"."""
    return "cpu" if " CPU, " in device else "cuda"


def readable_script(settings: Settings, device: str) -> str:
    """The same in readable form: one file that holds every source needed, as it is, unpacks them for its own lifetime and
    runs them with these settings; and that can print the counted script."""
    files = {path: text for path, text in sorted(needed_sources(settings).values())}
    files[f"pgolf/presets/{PRESET}.toml"] = to_toml(replace(settings, seed=Settings.seed))
    runner = (
        Path(__file__).with_name("script.py").read_text(encoding="utf-8").replace('DEVICE = "cpu"', f"DEVICE = {device!r}")
    )
    docstring, _, rest = runner.partition("FILES: dict[str, str] = {}\n")
    entries = [f'FILES["{path}"] = {literal(text)}\n' for path, text in files.items()]
    return docstring + "FILES: dict[str, str] = {}\n\n" + "\n".join(entries) + rest


def literal(text: str) -> str:
    """A Python expression for the text, as readable as the text allows."""
    raw = f"r'''{text}'''"
    if "'''" in text or text.endswith(("'", "\\")) or "\r" in text or "\0" in text:
        return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + "    ''\n)"
    return raw


def needed_sources(settings: Settings) -> dict[str, tuple[str, str]]:
    """Module name to (path in the package, text), for all that a run with these settings imports, early or late.

    A package's own file that does nothing but pass names on passes on those that are asked for.
    """
    sources: dict[str, tuple[str, str]] = {}
    faces: dict[str, Face] = {}
    waiting: list[tuple[str, str]] = [(name, "") for name in (*ROOTS, *_named(settings))]
    while waiting:
        name, asked = waiting.pop()
        if name in faces:
            waiting += faces[name].ask(asked)
            continue
        path = _file_of(name)
        if name in sources or path is None or _left_out(name, settings):
            continue
        parent = name.rpartition(".")[0]
        text, tree, imports = _parsed(path, name if path.name == "__init__.py" else parent)
        inside = name.replace(".", "/")
        sources[name] = (f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py", text)
        # a package's own file runs before any module in it
        waiting.append((parent, ""))
        if path.name == "__init__.py" and Face.is_one(tree):
            faces[name] = Face(text, tree, settings)
            waiting += faces[name].ask(asked)
            continue
        for module, imported in imports:
            waiting.append((module, imported))
            if imported and not (module in faces and imported in faces[module].origins):
                waiting.append((f"{module}.{imported}", ""))
    for name, face in faces.items():
        sources[name] = (sources[name][0], face.text())
    return sources


class Face:
    """A package's own file that says what the package is and passes names on."""

    def __init__(self, text: str, tree: ast.Module, settings: Settings):
        self.docstring = (ast.get_source_segment(text, tree.body[0]) or "") + "\n"
        self.origins = {
            alias.name: node.module or ""
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and not _left_out(node.module or "", settings)
            for alias in node.names
        }
        self.asked: set[str] = set()

    @staticmethod
    def is_one(tree: ast.Module) -> bool:
        names_all = lambda node: isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        passes_on = lambda node: isinstance(node, ast.ImportFrom) and not node.level and not any(a.asname for a in node.names)
        begins = bool(tree.body) and isinstance(tree.body[0], ast.Expr)
        return begins and all(names_all(node) or passes_on(node) for node in tree.body[1:])

    def ask(self, name: str) -> list[tuple[str, str]]:
        """What has to be there for the name, which may be a module of the package instead."""
        if name not in self.origins or name in self.asked:
            return []
        self.asked.add(name)
        return [(self.origins[name], name)]

    def text(self) -> str:
        lines: dict[str, list[str]] = {}
        for name in sorted(self.asked):
            lines.setdefault(self.origins[name], []).append(name)
        passed = "".join(f"from {module} import {', '.join(names)}\n" for module, names in sorted(lines.items()))
        return self.docstring + (f"\n{passed}" if passed else "")


def requirements(settings: Settings, device: str, readable: bool = False) -> list[str]:
    """The distributions that the script imports, or its readable form too, pinned to what is installed here."""
    owners = importlib.metadata.packages_distributions()
    texts = [merged_module(replace(settings, seed=Settings.seed), device), "import numba, numpy"]
    texts += [text for _, text in needed_sources(settings).values()] if readable else []
    modules = {module.split(".")[0] for text in texts for module, _ in _imports(ast.parse(text), "")}
    optional = {
        "brotli",
        "kernels",
        "flash_attn",
        "flash_attn_interface",
        "huggingface_hub",
        "tensorboard",
        "trackio",
        "wandb",
    }
    wanted = {owner for module in modules - optional - {"pgolf"} - sys.stdlib_module_names for owner in owners.get(module, [])}
    return sorted(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in wanted)


def _left_out(name: str, settings: Settings) -> bool:
    if any(_within(name, package) and not entered(settings) for package, entered in ENTERED.items()):
        return True
    return name not in KEPT and any(_within(name, package) for package in LEFT_OUT)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _file_of(name: str) -> Path | None:
    """A module's file. The operators may lie beside the package instead of in it."""
    top, *rest = name.split(".")
    if top != "pgolf":
        return None
    for root in pgolf.__path__:
        path = Path(root).joinpath(*rest)
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        if rest and path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    return None


@cache
def _parsed(path: Path, package: str) -> tuple[str, ast.Module, tuple[tuple[str, str], ...]]:
    """A module's text, its tree, and what it imports."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return text, tree, tuple(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Pairs of a module and a name that is imported from it, which may be a module too; "" for the module alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)
