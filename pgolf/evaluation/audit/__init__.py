"""The audit: whether a score is a code length, asked of the scorer itself and of what a submission says of it.

    from pgolf.evaluation.audit import Claims, Scored, audit
    report = audit(scorer, tokens)
    report.passed, report.failed

interface.py says what a scorer has to offer, checks.py and papers.py hold the tests, zoo.py scorers that must fail.
"""

from pgolf.evaluation.audit.auditor import Report, audit
from pgolf.evaluation.audit.checks import Finding
from pgolf.evaluation.audit.interface import AuditError, Claims, Scored, Scorer, SeedRun, Stepwise
from pgolf.evaluation.audit.trials import Effort

__all__ = ["AuditError", "Claims", "Effort", "Finding", "Report", "Scored", "Scorer", "SeedRun", "Stepwise", "audit"]
