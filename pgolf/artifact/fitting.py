"""The setting that uses a byte limit: bits of each role, then the clip, then pruning.

A step twice as large is one bit less, so the clip's factor closes the gap between two numbers of bits. The search rounds
without GPTQ, whose codes are nearly as large; the difference is measured once and allowed for.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.weights import Weights, round_weights
from pgolf.config import ArtifactSettings

# embeddings are kept two bits finer than matrices, as the submissions have it
EMBEDDING_BITS = 2
BITS = range(2, 9)
CLIP_STEPS, PRUNING_STEPS, CORRECTIONS = 6, 8, 3

Measure = Callable[[Weights, ArtifactSettings], int]


def fit(
    state: Mapping[str, Tensor],
    settings: ArtifactSettings,
    hessians: Mapping[str, Tensor] | None,
    measure: Measure,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Weights, ArtifactSettings]:
    """Weights whose size, as `measure` tells it (model and code), is at most settings.limit; and the settings chosen."""

    def quick_size(chosen: ArtifactSettings) -> int:
        # without inputs to calibrate with, GPTQ is the plain rounding it builds on
        return measure(round_weights(state, chosen), chosen)

    target = float(settings.limit)
    for _ in range(CORRECTIONS):
        chosen = _clipped(_with_bits(settings, quick_size, target), quick_size, target)
        weights = round_weights(state, chosen, hessians)
        size = measure(weights, chosen)
        say(
            f"fitting: {chosen.matrix_bits} bits, embeddings {chosen.embedding_bits}, clip x{chosen.clip_scale:.3f}: "
            f"{size:,} of {settings.limit:,} bytes"
        )
        if size <= settings.limit and (size > 0.995 * settings.limit or _is_finest(chosen)):
            return weights, chosen
        pruned = _pruned(weights, chosen, measure, settings.limit) if size <= 1.02 * settings.limit else None
        if pruned:
            return pruned
        target *= 0.999 * settings.limit / size
    if size <= settings.limit:
        return weights, chosen
    pruned = _pruned(weights, chosen, measure, settings.limit)
    if pruned:
        return pruned
    raise ArtifactError(
        f"the limit of {settings.limit:,} bytes cannot be met: with {chosen.matrix_bits}-bit matrices, the widest clip and "
        f"every code +-1 pruned, model and code still need {measure(weights.without_ones(1.0), chosen):,} bytes; "
        f"train a smaller network"
    )


def _is_finest(settings: ArtifactSettings) -> bool:
    return settings.matrix_bits == BITS[-1] and settings.clip_scale == 1.0


def _with_bits(settings: ArtifactSettings, size: Callable[[ArtifactSettings], int], target: float) -> ArtifactSettings:
    """The fewest bits that are too many, so that a wider clip makes them fit; or the most there are."""
    low, high = 0, len(BITS) - 1
    while low < high:
        middle = (low + high) // 2
        if size(_bits(settings, BITS[middle])) > target:
            high = middle
        else:
            low = middle + 1
    return _bits(settings, BITS[low])


def _bits(settings: ArtifactSettings, bits: int) -> ArtifactSettings:
    return replace(settings, matrix_bits=bits, embedding_bits=min(bits + EMBEDDING_BITS, BITS[-1]), clip_scale=1.0)


def _clipped(settings: ArtifactSettings, size: Callable[[ArtifactSettings], int], target: float) -> ArtifactSettings:
    """The narrowest clip that fits; the widest, four times the rule's, if none does."""
    if size(settings) <= target:
        return settings
    low, high = 1.0, 4.0
    for _ in range(CLIP_STEPS):
        middle = (low * high) ** 0.5
        if size(replace(settings, clip_scale=middle)) > target:
            low = middle
        else:
            high = middle
    return replace(settings, clip_scale=high)


def _pruned(
    weights: Weights, settings: ArtifactSettings, measure: Measure, limit: int
) -> tuple[Weights, ArtifactSettings] | None:
    """The least share of codes +-1 to zero that meets the limit, if any does."""
    if measure(weights, settings) <= limit:
        return weights, settings

    def pruned(share: float) -> tuple[Weights, ArtifactSettings]:
        return weights.without_ones(share), replace(settings, prune_ones=share)

    low, high = 0.0, 1.0
    if measure(*pruned(high)) > limit:
        return None
    for _ in range(PRUNING_STEPS):
        middle = (low + high) / 2
        if measure(*pruned(middle)) > limit:
            low = middle
        else:
            high = middle
    return pruned(high)
