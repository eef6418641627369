"""The code that is counted: which source files a run needs, and the one script that carries them in readable form."""

import ast
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pgolf
from pgolf.artifact.errors import ArtifactError
from pgolf.config import Settings, to_toml

ROOT = "pgolf.run"
# what other commands than train, pack, score and show need
LEFT_OUT = (
    "pgolf.artifact.export",
    "pgolf.artifact.script",
    "pgolf.data.fineweb",
    "pgolf.evaluation.codec",
    "pgolf.evaluation.audit",
    "pgolf.report",
)
KEPT = ("pgolf.report", "pgolf.report.tables")
PRESET = "submission"
# set by the script for the processes that it starts: where it lies
SCRIPT = "PGOLF_SCRIPT"


def embedded() -> Path | None:
    """The script that this code was unpacked from, if it was."""
    return Path(os.environ[SCRIPT]) if os.environ.get(SCRIPT) else None


def code_bytes(settings: Settings) -> int:
    """Bytes of the script for a run with these settings; inside it, its own."""
    script = embedded()
    if script is None:
        return len(make_script(settings).encode())
    try:
        return script.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{script} cannot be read: {error.strerror}") from None


def make_script(settings: Settings) -> str:
    """One file that holds every source needed, unpacks them for its own lifetime and runs them with these settings."""
    files = {path: text for path, text in sorted(needed_sources().values())}
    # the same script for every seed: which one it is, the environment says
    files[f"pgolf/presets/{PRESET}.toml"] = to_toml(replace(settings, seed=Settings.seed))
    runner = Path(__file__).with_name("script.py").read_text(encoding="utf-8")
    docstring, _, rest = runner.partition("FILES: dict[str, str] = {}\n")
    entries = [f'FILES["{path}"] = {literal(text)}\n' for path, text in files.items()]
    return docstring + "FILES: dict[str, str] = {}\n\n" + "\n".join(entries) + rest


def literal(text: str) -> str:
    """A Python expression for the text, as readable as the text allows."""
    raw = f"r'''{text}'''"
    if "'''" in text or text.endswith(("'", "\\")) or "\r" in text or "\0" in text:
        return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + "    ''\n)"
    return raw


@cache
def needed_sources() -> dict[str, tuple[str, str]]:
    """Module name to (path in the package, text), for all that `pgolf.run` imports, directly or not, early or late."""
    found: dict[str, tuple[str, str]] = {}
    waiting = [ROOT]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name in found or path is None or _left_out(name):
            continue
        text = path.read_text(encoding="utf-8")
        inside = name.replace(".", "/")
        found[name] = (f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py", text)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(ast.parse(text), package):
            parts = imported.split(".")
            # a package's own file runs before any module in it
            waiting += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return found


def requirements() -> list[str]:
    """The distributions that these sources import, pinned to what is installed here."""
    owners = importlib.metadata.packages_distributions()
    modules = set()
    for name, (path, text) in needed_sources().items():
        package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
        modules |= {imported.split(".")[0] for imported in _imports(ast.parse(text), package)}
    optional = {"brotli", "kernels", "flash_attn", "flash_attn_interface", "huggingface_hub", "tensorboard"}
    wanted = {owner for module in modules - optional - {"pgolf"} - sys.stdlib_module_names for owner in owners.get(module, [])}
    return sorted(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in wanted)


def _left_out(name: str) -> bool:
    return name not in KEPT and any(name == start or name.startswith(start + ".") for start in LEFT_OUT)


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


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of modules, and of what is imported from them, which may be modules too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
