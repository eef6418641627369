"""The audit: whether a score is a code length, asked of the scorer itself and of what a submission says of it.

    from pgolf.audit import Claims, Scored, audit
    report = audit(scorer, tokens)
    report.passed, report.failed

interface.py says what a scorer has to offer, checks.py and claim_checks.py hold the tests, violations/ scorers that must fail.
"""

from pgolf.audit.auditor import Report, audit
from pgolf.audit.checks import Finding
from pgolf.audit.interface import AuditError, Claims, Scored, Scorer, SeedRun, Stepwise
from pgolf.audit.trials import Effort

__all__ = ["AuditError", "Claims", "Effort", "Finding", "Report", "Scored", "Scorer", "SeedRun", "Stepwise", "audit"]
