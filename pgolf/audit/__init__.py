"""The audit: whether a score is a code length, and what a submission says beside it.

    from pgolf.audit import Claims, Scored, audit
    report = audit(scorer, tokens)
    report.passed, report.failed, report.bound

interface.py   what a scorer has to offer, and what a submission claims
external.py    scorers in processes of their own: runner.py in a sandbox/
replay.py      the claim against what the scorer says of sampled positions from their past alone; bounds.py its confidence
trials.py      calls on streams made for the purpose (streams.py), judged by checks/
claim_checks.py, records.py   what is claimed beside the scores, and a finished run's files, recounted
violations/    scorers and submissions that must fail

Names are loaded when they are asked for, so that a scorer's process that imports Claims and Scored loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgolf.audit.auditor import Report, audit
    from pgolf.audit.checks import Finding
    from pgolf.audit.interface import AuditError, Claims, Scored, Scorer, SeedRun, Stepwise
    from pgolf.audit.trials import Effort

HOMES = {
    "auditor": ("Report", "audit"),
    "checks": ("Finding",),
    "interface": ("AuditError", "Claims", "Scored", "Scorer", "SeedRun", "Stepwise"),
    "trials": ("Effort",),
}
__all__ = ["AuditError", "Claims", "Effort", "Finding", "Report", "Scored", "Scorer", "SeedRun", "Stepwise", "audit"]


def __getattr__(name: str):
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"pgolf.audit.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
