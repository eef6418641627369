"""A network's weights as the file holds them: small tensors in float16, large ones as codes, scales and corrections."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pgolf.artifact import rounding
from pgolf.artifact.coder import Outline
from pgolf.artifact.grid import Rounded, Steps
from pgolf.artifact.rounding import Correction
from pgolf.config import ArtifactSettings
from pgolf.model.parameters import parameter, without_layer

# how many directions the coder looks for in a matrix: embeddings have many, and are small enough to look closely
DIRECTIONS = {"matrix": 8, "embedding": 32}


def role_of(name: str, numel: int, settings: ArtifactSettings) -> str:
    """Which treatment a tensor gets: small (float16), matrix (few bits) or embedding."""
    return "small" if numel <= settings.small_tensor else parameter(name).role


def steps_of(role: str, settings: ArtifactSettings, kind: str = "") -> Steps:
    """kind  a matrix's name without its layer, where the MLP's are clipped in another way than attention's"""
    bits = settings.matrix_bits if role == "matrix" else settings.embedding_bits
    by_sigma = rounding.FORMS[settings.rounding].by_sigma
    sigmas = settings.sdclip_sigmas if role == "matrix" else settings.sdclip_embedding_sigmas
    if kind and parameter(kind).site in ("up", "down"):
        sigmas = settings.sdclip_mlp_sigmas or sigmas
    floor = settings.scale_floor and not by_sigma
    return Steps(bits, floor, settings.clip_scale, settings.scale_steps, sigmas if by_sigma else 0.0)


def outlines_of(
    shapes: Mapping[str, tuple[int, int]], correction_ranks: Mapping[str, int], settings: ArtifactSettings
) -> list[Outline]:
    """What a predictor knows of a file's matrices, in its order, from their names and shapes: first the tensors, then the
    two factors of each correction."""
    places = {name: place for place, name in enumerate(shapes)}
    outlines = []
    for name, shape in shapes.items():
        role = role_of(name, shape[0] * shape[1], settings)
        kind, row = without_layer(name), parameter(name)
        feeder = places.get(name.removesuffix(kind) + row.feeder) if row.feeder else None
        if feeder is not None and feeder > places[name]:
            feeder = None
        outlines.append(Outline(kind, shape, steps_of(role, settings).largest, DIRECTIONS[role], feeder=feeder))
    for name, rank in correction_ranks.items():
        rows, columns = shapes[name]
        group = rounding.factor_group(rank, columns)
        outlines.append(Outline("left", (rank, rows), -rounding.LEFT_LEAST))
        outlines.append(Outline("right", (rank * columns // group, group), -rounding.RIGHT_LEAST))
    return outlines


@dataclass
class Weights:
    small: dict[str, Tensor] = field(default_factory=dict)
    rounded: dict[str, Rounded] = field(default_factory=dict)
    corrections: dict[str, Correction] = field(default_factory=dict)

    def values(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """float32 tensors, what the network will compute with."""
        state = {}
        for name, shape in shapes.items():
            if name in self.small:
                state[name] = self.small[name].float().reshape(shape)
                continue
            value = self.rounded[name].values()
            if name in self.corrections:
                value = value + self.corrections[name].values()
            state[name] = value.reshape(shape)
        return state

    def coded(self, settings: ArtifactSettings) -> tuple[list[Outline], list[Rounded]]:
        """Everything that is codes and scales, in the file's order."""
        shapes = {name: (codes.shape[0], codes.shape[1]) for name, (codes, _) in self.rounded.items()}
        ranks = {name: len(correction.left.codes) for name, correction in self.corrections.items()}
        matrices = list(self.rounded.values())
        for correction in self.corrections.values():
            matrices += [correction.left, correction.right]
        outlines = outlines_of(shapes, ranks, settings)
        return [outline.given(matrix.scales.numpy()) for outline, matrix in zip(outlines, matrices, strict=True)], matrices

    def without_ones(self, share: float) -> "Weights":
        if not share:
            return self
        matrices = rounding.without_ones(list(self.rounded.values()), share)
        return replace(self, rounded=dict(zip(self.rounded, matrices, strict=True)))


def round_weights(
    state: Mapping[str, Tensor], settings: ArtifactSettings, hessians: Mapping[str, Tensor] | None = None
) -> Weights:
    """Round what is large, on the device where it is: pruning first, then matrices of one kind as a stack, then the
    codes +-1, then the correction of what all that has lost."""
    weights, hessians = Weights(), hessians or {}
    stacks: dict[tuple, list[str]] = {}
    large = {}
    for name, tensor in state.items():
        tensor = tensor.detach()
        role = role_of(name, tensor.numel(), settings)
        if role == "small":
            weights.small[name] = tensor.half().cpu()
            continue
        large[name] = tensor.float().reshape(-1, tensor.shape[-1])
        stacks.setdefault((without_layer(name), role, large[name].shape, name in hessians), []).append(name)
    rounded: dict[str, Rounded] = {}
    for (kind, role, _, calibrated), names in stacks.items():
        stack = rounding.without_smallest(torch.stack([large[name] for name in names]), settings.prune)
        inputs = torch.stack([hessians[name] for name in names]) if calibrated else None
        matrices = _round_stack(stack, inputs, role, kind, settings)
        for name, codes, scales in zip(names, matrices.codes.cpu(), matrices.scales.cpu(), strict=True):
            rounded[name] = Rounded(codes, scales)
    weights.rounded = {name: rounded[name] for name in large}
    weights = weights.without_ones(settings.prune_ones)
    if settings.lqer_rank:
        errors = {name: large[name].cpu() - weights.rounded[name].values() for name in large}
        worst = sorted(errors, key=lambda name: -float(errors[name].norm()))[: settings.lqer_tensors]
        # in the network's order, so that the file need only name them
        for name in large:
            if name in worst:
                rank = min(settings.lqer_rank, *errors[name].shape)
                weights.corrections[name] = rounding.low_rank(errors[name], rank)
    return weights


def _round_stack(stack: Tensor, hessians: Tensor | None, role: str, kind: str, settings: ArtifactSettings) -> Rounded:
    form, steps = rounding.FORMS[settings.rounding], steps_of(role, settings, kind)
    if hessians is not None and form.calibrated:
        return form.calibrated(stack, hessians, steps, damping=settings.damping)
    return (form.embedding if role == "embedding" else form.matrix)(stack, steps)
