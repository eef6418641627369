"""The known violations. For each there is a case, a scorer or submission that the audit must fail for the right reason, and
its legal control, the nearest scorer that keeps the rules, which it must pass.

    python -m pgolf.audit.violations        # audits all of them and prints which test caught which

Numbers V1 to V28 are those of the catalogue that the field has put together in its reviews; V0 are further ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pgolf.audit.auditor import Report, audit
from pgolf.audit.subjects import load
from pgolf.audit.trials import Effort
from pgolf.audit.violations import distribution, order, submissions
from pgolf.audit.violations.base import LeftToRight, text

EFFORT = Effort(targets=320, probes=40, cuts=6)


@dataclass(frozen=True)
class Case:
    number: str
    name: str
    illegal: Callable
    """Given a folder of its own: a scorer, or the name of one. A class is one without it."""
    legal: Callable
    caught_by: tuple[str, ...]
    """The tests that must fail."""


CASES = (
    Case("V1", "hash-ratio cache", distribution.HashRatio, distribution.BucketRows, ("N1", "N3")),
    Case("V1", "hash-ratio cache, cost only", distribution.HashRatioHidden, distribution.BucketRows, ("N3",)),
    Case("V2", "hashed counts over counts and beta", distribution.PseudoDirichlet, distribution.Dirichlet, ("N3",)),
    Case("V3", "entropy as an expert", distribution.EntropyExpert, distribution.UniformExpert, ("N1", "N3", "N4", "N5")),
    Case(
        "V3",
        "entropy as an expert, cost only",
        distribution.EntropyExpertHidden,
        distribution.UniformExpert,
        ("N3", "N4", "N5"),
    ),
    Case("V4", "hints gated by the target", order.GatedByTarget, order.GatedByPast, ("C1b",)),
    Case("V5", "trust gated by the target's probability", order.GatedByItsProbability, order.GatedByConfidence, ("C1b",)),
    Case("V6", "a bias optimised on what it scores", order.Slot, order.LastWindowsSlot, ("C1a",)),
    Case("V7", "adapted to all before scoring", order.TrainedBefore, LeftToRight, ("C1a", "C3")),
    Case("V8", "the last epoch's scores", order.LastEpochCounts, order.TwoEpochs, ("C1a", "C4")),
    Case("V9", "a second pass with the full cache", order.TwoPasses, LeftToRight, ("C1a", "C4")),
    Case("V10", "the cheapest of two experts", distribution.Cheapest, distribution.Average, ("N3",)),
    Case("V11", "p spread over bytes", distribution.SpreadOverBytes, distribution.MixedAsSymbols, ("N1", "N3")),
    Case("V12", "bytes without an end of symbol", distribution.NoEndOfSymbol, distribution.MixedAsSymbols, ("N3",)),
    Case("V13", "a part of the text as all of it", submissions.subset, submissions.whole, ("C4",)),
    Case("V14", "leading spaces counted twice", submissions.space_twice, submissions.counted_right, ("B1",)),
    Case("V14", "a space counted as three bytes", submissions.space_as_mark, submissions.counted_right, ("B1",)),
    Case("V14", "bytes counted as characters", submissions.byte_as_character, submissions.counted_right, ("B1",)),
    Case("V14", "sentinels counted", submissions.sentinel_counted, submissions.counted_right, ("B1",)),
    Case("V15", "training on validation documents", submissions.overlapping, submissions.disjoint, ("L1",)),
    Case("V16", "a validation text of its own", submissions.own_partition, submissions.disjoint, ("L1",)),
    Case("V17", "a document leaks into the next", order.SmearedOverBorders, order.Apart, ("D1",)),
    Case("V18", "training data read while scoring", submissions.reads_training, submissions.reads_its_own, ("A1",)),
    Case("V18", "calibration off the clock", submissions.calibrated_late, submissions.calibrated_in_time, ("T1",)),
    Case("V19", "validation data in calibration", order.CalibratedOnText, order.CalibratedOnOwnText, ("C1a", "C3")),
    Case("V20", "warm-up steps on the text", order.WarmedUpOnText, order.WarmedUpOnNoise, ("C3",)),
    Case("V21", "documents sorted by length", order.SortedByLength, order.ByDocument, ("C1a", "C4")),
    Case("V22", "hints off the clock", submissions.hints_outside, submissions.hints_inside, ("T1",)),
    Case("V23", "over the cap", submissions.over_the_cap, submissions.all_counted, ("A2",)),
    Case("V23", "code not counted", submissions.code_not_counted, submissions.all_counted, ("A2",)),
    Case("V23", "helpers not counted", submissions.helper_not_counted, submissions.all_counted, ("A2",)),
    Case("V24", "over the clock", submissions.too_slow, submissions.in_time, ("T1",)),
    Case("V25", "seeds of several configurations", submissions.mixed_configurations, submissions.three_seeds, ("S",)),
    Case("V25", "a single seed", submissions.single_seed, submissions.three_seeds, ("S",)),
    Case("V26", "the tail scored again", order.TailAgain, order.TwoEpochs, ("C4",)),
    Case("V27", "symbols counted in the text", order.VocabularyOfTheText, LeftToRight, ("C1d",)),
    Case("V28", "hash ratio from training", distribution.TrainingOracle, distribution.TrainingCounts, ("N1", "N3")),
    Case("V0", "less than a distribution", distribution.Wasteful, LeftToRight, ("N1", "N3")),
    Case("V0", "a look ahead now and then", order.Neighbourly, LeftToRight, ("C1a",)),
    Case("V0", "never the same twice", order.Moody, LeftToRight, ("R1",)),
    Case("V0", "each rank its own", order.RankLocal, order.OnAllRanks, ("R1",)),
    Case("V0", "shown one way, paid another", order.OtherPath, LeftToRight, ("N2",)),
)


def published_cases() -> tuple[Case, ...]:
    """Those that need torch."""
    from pgolf.audit.violations import published

    return (
        Case("V3", "#688 as published", published.Hedge, published.honest_hedge, ("N1", "N3", "N4", "N5")),
        Case("V1", "#1014 as published", published.Boost, published.honest_boost, ("N1", "N3", "N5")),
    )


def examine(make: Callable, folder: Path) -> Report:
    """The audit of a case or of its legal control."""
    made = make() if isinstance(make, type) or make.__code__.co_argcount == 0 else make(folder)
    name = made if isinstance(made, str) else ""
    return audit(load(name) if name else made, text(EFFORT.targets), effort=EFFORT, name=name)
