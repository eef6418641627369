"""Whether a preset's whole job fits its 600 seconds, extrapolated from what was measured on one device.

The job is the challenge's: as many steps as the submission took, on eight devices; then all 62,021,632 targets scored
with the preset's stride, adaptation and mixtures. A bill says how the seconds are made up. What one device cannot
measure, the exchange between eight, is assumed and marked so.
"""

import math
from dataclasses import dataclass

from pgolf.config import Settings
from pgolf.summary import Summary

LIMIT = 600.0
TARGETS = 62_021_632
DEVICES = 8
# bytes a second at which a device sends what others wait for: half of what an NVLink 4 switch is sold with, assumed
EXCHANGE = 225e9

# Steps that the submissions logged within their clock (the least of their seeds). #1014 logged 535 steps of one small GPU,
# which say nothing of eight large ones: it is held to #549's count, whose network and batch it shares. #687 names
# 84 ms a step. #1855's is the mean of its seeds; the first 35 % of its clock run without the loop, which this leaves out.
STEPS = {
    "pr549": 7_179, "pr687": 7_142, "pr688": 5_983, "pr745": 4_451, "pr953": 5_842, "pr1014": 7_179, "pr1855": 4_931,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float
    how: str
    counted: bool = True


@dataclass(frozen=True)
class Bill:
    title: str
    parts: tuple[Part, ...]
    limit: float = LIMIT

    @property
    def total(self) -> float:
        return math.fsum(part.seconds for part in self.parts if part.counted)

    @property
    def fits(self) -> bool:
        return self.total <= self.limit

    def text(self) -> str:
        lines = [f"{self.title}: {self.total:.1f} s of {self.limit:g} s, {'fits' if self.fits else 'DOES NOT FIT'}"]
        for part in self.parts:
            mark = "" if part.counted else "  (not on the clock)"
            lines.append(f"  {part.seconds:9.2f} s  {part.name}: {part.how}{mark}")
        return "\n".join(lines)


@dataclass(frozen=True)
class TrainingRates:
    """Seconds on one device. A step is of an eighth of the batch, with the optimiser's whole work; `quantised_step` is one
    with the preset's quantisation-aware terms on."""

    step: float
    parameters: int
    quantised_step: float = 0.0
    calibration: float = 0.0
    rounding: float = 0.0
    coding: float = 0.0
    warm_up: float = 0.0


def training_bill(settings: Settings, rates: TrainingRates, *, steps: int, limit: float = LIMIT) -> Bill:
    """Warm-up and compiling are off the clock, as in the submissions' scripts; quantising and coding are on it."""
    options = settings.training
    exchanged = 2 * (DEVICES - 1) / DEVICES * 4 * rates.parameters / EXCHANGE
    quantised = quantised_steps(settings, steps) if rates.quantised_step else 0
    generated = settings.artifact.calibration == "generated"
    parts = (
        Part("steps", (steps - quantised) * rates.step, f"{steps - quantised:,} of {1e3 * rates.step:.2f} ms"),
        Part(
            "quantisation-aware steps",
            quantised * rates.quantised_step,
            f"{quantised:,} of {1e3 * rates.quantised_step:.2f} ms, while the schedule is below {options.qat_threshold:g}",
        ),
        Part("exchange", steps * exchanged, f"{1e3 * exchanged:.2f} ms a step, assumed ({EXCHANGE / 1e9:g} GB/s, no overlap)"),
        Part(
            "calibration",
            rates.calibration,
            f"{settings.artifact.calibration_sequences} sequences of {options.sequence_length:,} tokens, "
            + ("written by the model itself" if generated else "of training data"),
            counted=not generated,
        ),
        Part("rounding", rates.rounding, settings.artifact.rounding),
        Part("coding", rates.coding, settings.artifact.compressor),
        Part("warm-up", rates.warm_up, f"{options.warmup_steps} steps and compiling", counted=False),
    )
    return Bill(f"{settings.preset}, training", parts, limit)


def quantised_steps(settings: Settings, steps: int) -> int:
    """How many of the last steps run with the quantisation-aware terms on: the schedule falls linearly to zero."""
    fall = settings.training.warmdown_share * steps or settings.training.warmdown_steps
    return min(steps, round(settings.training.qat_threshold * fall))


@dataclass(frozen=True)
class ScoringRates:
    """Seconds on one device: for a window's forward pass; for a target by all predictors together (every rank reads all of
    them); for a target learnt from in one epoch; for a target in a document with adapters; and once for all."""

    window: float
    result: float = 0.0
    learning: float = 0.0
    adapted_target: float = 0.0
    writing: float = 0.0
    loading: float = 0.0
    warm_up: float = 0.0


def scoring_bill(settings: Settings, rates: ScoringRates, *, targets: int = TARGETS, limit: float = LIMIT) -> Bill:
    """From the start of the process to the last number: loading, compiling and warm-up count."""
    options = settings.evaluation
    across, along = math.ceil(targets / options.window), math.ceil(targets / options.stride)
    shared = f"{1e3 * rates.window:.3f} ms each, shared by {DEVICES}"
    parts = [
        Part("loading", rates.loading, "artifact and stream"),
        Part("warm-up", rates.warm_up, "first calls, compiling"),
        Part("first pass", across * rates.window / DEVICES, f"{across:,} windows side by side, {shared}"),
    ]
    if options.adaptation.method == "lora":
        rate = f"{1 / rates.adapted_target:,.0f} tokens/s, shared by {DEVICES}" if rates.adapted_target else "not measured"
        parts.append(Part("documents", targets * rates.adapted_target / DEVICES, f"adapters for each, {rate}"))
    else:
        name = f"{along:,} windows at stride {options.stride}, {shared}"
        parts.append(Part("sliding windows", along * rates.window / DEVICES, name))
    parts.append(Part("predictors", targets * rates.result, f"{1e9 * rates.result:.1f} ns a target, on every device"))
    if options.adaptation.method == "chunks":
        epochs = options.adaptation.epochs
        how = f"{epochs} x {1e9 * rates.learning:.1f} ns a target, shared by {DEVICES}"
        parts.append(Part("adaptation", targets * epochs * rates.learning / DEVICES, how))
    parts.append(Part("writing", targets * rates.writing, f"{1e9 * rates.writing:.1f} ns a target, on one device"))
    return Bill(f"{settings.preset}, scoring", tuple(parts), limit)


def bills_of_run(summary: Summary, preset: str) -> list[Bill]:
    """A finished run's own clocks: nothing is extrapolated."""
    train, scoring = summary.train, summary.scoring
    bills = []
    for title, clock in (("training", train), ("scoring", scoring)):
        parts = tuple(Part(name, seconds, "measured") for name, seconds in clock.parts.items())
        bills.append(Bill(f"{preset}, {title}", parts, clock.limit))
    return bills
