"""Axes: their labels, the mapping of values to 0..1, and ticks."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


def number(value: float | None, digits: int = 4) -> str:
    """A figure as short as it can be said with so many digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    for least, size, suffix in ((0.9999e9, 1e9, " G"), (0.9999e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= least:
            scaled = value / size
            text = f"{scaled:.{max(digits - 1 - int(math.log10(abs(scaled))), 0)}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix
    if abs(value) < 1e-3:
        return f"{value:.{max(digits - 2, 0)}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


@dataclass(frozen=True)
class Axis:
    label: str
    unit: str
    log: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def words(self) -> str:
        """What is on it, in which unit, and whether equal distances are equal ratios."""
        return f"{self.label} ({self.unit}, log scale)" if self.log else f"{self.label} ({self.unit})"


class Scale:
    """Values of an axis to 0..1, and the values that get a tick."""

    def __init__(self, axis: Axis, values: np.ndarray, ticks: int = 5):
        values = values[np.isfinite(values)]
        if axis.log:
            values = values[values > 0]
        low = axis.low if axis.low is not None else float(values.min()) if len(values) else 1.0
        high = axis.high if axis.high is not None else float(values.max()) if len(values) else 2.0
        self.log = axis.log
        if axis.log:
            low, high = (low / 1.5, high * 1.5) if high < 1.5 * low else (low / 1.05, high * 1.05)
            self.ticks = _log_ticks(low, high)
        else:
            if high <= low:
                low, high = low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1)
            self.ticks = _linear_ticks(low, high, ticks)
            room = 0.04 * (high - low)
            low = low - room if axis.low is None else axis.low
            high = high + room if axis.high is None else axis.high
            self.ticks = [tick for tick in self.ticks if low <= tick <= high]
        self.low, self.high = low, high

    def of(self, values) -> np.ndarray:
        values = np.asarray(values, float)
        if not self.log:
            return (values - self.low) / ((self.high - self.low) or 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            places = np.log(values / self.low) / (math.log(self.high / self.low) or 1.0)
        return np.where(values > 0, places, np.nan)

    def place(self, value: float) -> float:
        return float(self.of(value))

    def as_data(self) -> list:
        return [self.low, self.high, int(self.log)]


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2, 3, 5, ... and powers of ten, the finest set that is not too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: -(-len(ticks) // 6)]


def tick_label(value: float, scale: Scale) -> str:
    if not scale.log and value and abs(value) < 1e4:
        step = min((abs(b - a) for a, b in pairwise(scale.ticks)), default=abs(value))
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if round(step * 10**decimals, 6) % 1:
            decimals += 1
        return f"{value:,.{decimals}f}" if decimals < 5 else f"{value:.1e}"
    if scale.log and 1e-3 <= abs(value) < 1e4:
        return f"{value:,g}"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == ' k' else size):g}{suffix}"
    return number(value, 3) if value else "0"
