"""The table of cases, and how one of them is audited."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pgolf.audit.auditor import Report, audit, audit_external
from pgolf.audit.external import ExternalScorer
from pgolf.audit.trials import Effort
from pgolf.audit.violations import distribution, leaks, order, submissions
from pgolf.audit.violations.base import LeftToRight, text

EFFORT = Effort(targets=320, probes=40, cuts=6)
# of external scorers: targets that they claim a score for, all of which are replayed unless another test catches them
CLAIMED, FEW = leaks.CLAIMED_TARGETS, 40
EXTERNAL_EFFORT = Effort(targets=160, probes=12, cuts=2, substitutions=1, samples=24)


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
    Case("V29", "passages copied from training", submissions.copied_passage, submissions.copied_phrase, ("L2",)),
    Case("V0", "less than a distribution", distribution.Wasteful, LeftToRight, ("N1", "N3")),
    Case("V0", "a look ahead now and then", order.Neighbourly, LeftToRight, ("C1a",)),
    Case("V0", "never the same twice", order.Moody, LeftToRight, ("R1",)),
    Case("V0", "each rank its own", order.RankLocal, order.OnAllRanks, ("R1",)),
    Case("V0", "shown one way, paid another", order.OtherPath, LeftToRight, ("N2",)),
)


# what hides from trials: audited in processes of their own
LEAKS = (
    Case("C1", "peeks at two places in a hundred", leaks.PeeksSeldom, leaks.SeededByThePast, ("P1",)),
    Case("C1", "peeks in whole streams, not by steps", leaks.PeeksInWholeStreams, leaks.ByStep, ("P1",)),
    Case("C1", "peeks where it is not probed", leaks.PeeksUnlessProbed, leaks.Remembering, ("P1",)),
    Case("C1", "peeks late in a stream", leaks.PeeksLate, leaks.ByTotal, ("P1",)),
    Case("C1", "peeks in its process's first call", leaks.PeeksInFirstCall, leaks.Remembering, ("P1",)),
    Case("C1", "peeks in the claimed stream alone", leaks.PeeksInTheClaimedStream, leaks.ByTotal, ("P1",)),
    Case("C1", "peeks where it sees no auditor", leaks.PeeksWhenAlone, leaks.ByStep, ("P1",)),
    Case("C1", "looks ahead at four places in a thousand", leaks.LooksAheadSeldom, leaks.SeededByThePast, ("P1",)),
    Case("C3", "learns one target early", leaks.LearnsOneEarly, leaks.ByStep, ("P1",)),
    Case("C2", "a mass of 1.05, no vectors", leaks.MassEverywhere, leaks.Certain, ("P2", "N1")),
    Case("C2", "capped costs, no vectors", leaks.Capped, leaks.Certain, ("P2", "N1")),
    Case("C2", "costs rounded down, no vectors", leaks.RoundedDown, leaks.Certain, ("P2", "N1")),
    Case("C2", "half price now and then, no vectors", leaks.HalfPriceSeldom, leaks.Certain, ("P2", "N1")),
    Case("C4", "declares endless noise", leaks.DeclaresNoise, leaks.ByStep, ("R1",)),
    Case("C1", "remembers earlier streams", leaks.RemembersStreams, leaks.Remembering, ("R1",)),
    Case("C1", "shares memory between calls", leaks.SharesMemory, leaks.Remembering, ("R1",)),
    Case("A1", "reads a file to update it", leaks.ReadsToUpdate, leaks.ByStep, ("A1",)),
    Case("A1", "reads a file by C", leaks.ReadsByC, leaks.ByStep, ("A1",)),
    Case("A1", "reads a file through its root", leaks.ReadsThroughItsRoot, leaks.ByStep, ("A1",)),
    Case("A1", "maps a file", leaks.ReadsMapped, leaks.ByStep, ("A1",)),
    Case("A1", "names the whole disk as its own", leaks.MayReadEverything, leaks.ByStep, ("A1",)),
)


def published_cases() -> tuple[Case, ...]:
    """Those that need torch."""
    from pgolf.audit.violations import published

    return (
        Case("V3", "#688 as published", published.Hedge, published.honest_hedge, ("N1", "N3", "N4", "N5")),
        Case("V1", "#1014 as published", published.Boost, published.honest_boost, ("N1", "N3", "N5")),
    )


def examine(make: Callable, folder: Path, replays: int = CLAIMED) -> Report:
    """The audit of a case or of its legal control: in this process, or by its name (FILE.py:NAME) in processes of its own."""
    if isinstance(make, type):
        made = leaks.named(make) if make.__module__ == leaks.__name__ else make()
    else:
        made = make() if make.__code__.co_argcount == 0 else make(folder)
    if not isinstance(made, str):
        return audit(made, text(EFFORT.targets), effort=EFFORT)
    return audit_external(ExternalScorer(made), text(CLAIMED), effort=EXTERNAL_EFFORT, replays=replays)
