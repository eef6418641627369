"""The tests that look at a scorer's trials, by the rule that they check (C1 to C4, see the four conditions of issue #1017 of
openai/parameter-golf). A test gives None for its verdict where it does not apply, and says why."""

from pgolf.audit.checks import causality, distribution, order  # noqa: F401  (each registers its tests)
from pgolf.audit.checks.base import CHECKS, SHAPE_TOLERANCE, Finding, Verdict, apart, findings
from pgolf.audit.checks.distribution import COIN_NATS, RESTARTS, coin_gains, log_sums

__all__ = [
    "CHECKS", "COIN_NATS", "RESTARTS", "SHAPE_TOLERANCE", "Finding", "Verdict", "apart", "coin_gains", "findings", "log_sums",
]  # fmt: skip
