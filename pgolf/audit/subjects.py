"""A subject by its name: `run=FOLDER`, or `scorer=MODULE_OR_FILE:NAME`. Used by the command and inside the sandbox."""

import importlib
import importlib.util
import sys
from pathlib import Path

from pgolf.audit.interface import AuditError
from pgolf.audit.trials import OneScorer, Subject


def load(name: str) -> Subject:
    kind, _, rest = name.partition("=")
    if kind == "run":
        from pgolf.audit.runs import run_subject

        return run_subject(rest)
    return OneScorer(scorer_named(rest))


def scorer_named(name: str):
    """The object NAME of a module, or of a Python file."""
    where, _, what = name.rpartition(":")
    if not where or not what:
        raise AuditError(f"{name!r} names no scorer; write MODULE:NAME or FILE.py:NAME")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise AuditError(f"there is no module {error.name!r} for the scorer {name}") from None
    except Exception as error:
        raise AuditError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from None
    found = module
    for part in what.split("."):
        if not hasattr(found, part):
            raise AuditError(f"{where} has no {what}")
        found = getattr(found, part)
    return found


def _from_file(path: Path):
    path = path.resolve()
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    # what it imports from beside itself
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
