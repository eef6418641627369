import dataclasses

import pytest
import torch

from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.fitting import _pruned, fit
from pgolf.artifact.pack import sections_of, size_of, write_weights
from pgolf.artifact.weights import round_weights
from tests.artifact.conftest import TOKENIZER, settings_with


def measure_of(settings):
    def measure(weights, chosen):
        found = dataclasses.replace(settings, artifact=chosen)
        return size_of(sections_of(weights, found, TOKENIZER), chosen.limit, 100).total_bytes

    return measure


def fitted(state, limit, moments=None, **artifact):
    settings = settings_with(limit=limit, compressor="entropy", **artifact)
    return fit(state, settings.artifact, moments, measure_of(settings)), settings


@pytest.fixture(scope="module")
def sizes(state):
    """What two and eight bits need."""
    found = []
    for bits in (2, 8):
        settings = settings_with(compressor="entropy", matrix_bits=bits, embedding_bits=min(8, bits + 2))
        found.append(measure_of(settings)(round_weights(state, settings.artifact), settings.artifact))
    return found


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
@pytest.mark.parametrize("form", ["percentile", "sdclip"])
def test_the_limit_is_used_and_kept(tmp_path, state, sizes, share, form):
    limit = round(sizes[0] + share * (sizes[1] - sizes[0]))
    (weights, chosen), settings = fitted(state, limit, rounding=form, sdclip_sigmas=4.0, sdclip_embedding_sigmas=4.0)
    settings = dataclasses.replace(settings, artifact=chosen)
    size = write_weights(tmp_path / "m", weights, settings, TOKENIZER, code_bytes=100)
    assert 0 <= size.margin < 0.02 * limit
    assert chosen.embedding_bits == min(8, chosen.matrix_bits + 2)


def test_gptq_is_fitted_by_its_own_size(state, sizes):
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for name, tensor in state.items():
        if ".attn." in name or ".mlp." in name:
            x = torch.randn(200, tensor.shape[-1], generator=generator) @ torch.randn(
                tensor.shape[-1], tensor.shape[-1], generator=generator
            )
            moments[name] = x.T @ x / 200
    limit = sum(sizes) // 2
    (weights, chosen), settings = fitted(state, limit, moments, rounding="gptq")
    size = measure_of(settings)(weights, chosen)
    assert 0.98 * limit < size <= limit
    assert size != measure_of(settings)(round_weights(state, dataclasses.replace(chosen, rounding="percentile")), chosen)


def test_more_room_gives_a_smaller_error(state, sizes):
    shapes = {name: tensor.shape for name, tensor in state.items()}
    errors = []
    for share in (0.2, 0.5, 0.8):
        (weights, _), _ = fitted(state, round(sizes[0] + share * (sizes[1] - sizes[0])))
        errors.append(sum(float((state[name] - value).square().sum()) for name, value in weights.values(shapes).items()))
    assert errors[0] > errors[1] > errors[2]


def test_room_for_everything_takes_the_finest(state):
    (_, chosen), _ = fitted(state, 10_000_000)
    assert (chosen.matrix_bits, chosen.embedding_bits, chosen.clip_scale, chosen.prune_ones) == (8, 8, 1.0, 0.0)


def test_far_below_two_bits_the_clip_widens(state, sizes):
    (weights, chosen), settings = fitted(state, round(sizes[0] * 0.7))
    assert chosen.matrix_bits == 2 and chosen.clip_scale > 1.2
    assert 0.9 * settings.artifact.limit < measure_of(settings)(weights, chosen) <= settings.artifact.limit


def test_pruning_takes_no_more_codes_than_the_limit_asks_for(state):
    settings = settings_with(compressor="entropy", matrix_bits=4)
    measure, chosen = measure_of(settings), settings.artifact
    weights = round_weights(state, chosen)
    limit = round(0.97 * measure(weights, chosen))
    pruned, found = _pruned(weights, chosen, measure, limit)
    assert 0.99 * limit < measure(pruned, found) <= limit and 0 < found.prune_ones < 1
    again = round_weights(state, found)
    assert all(torch.equal(again.rounded[name].codes, pruned.rounded[name].codes) for name in again.rounded)
    assert _pruned(weights, chosen, measure, limit // 4) is None


def test_a_limit_that_cannot_be_met_is_said(state):
    with pytest.raises(ArtifactError, match="limit of 1,000 bytes cannot be met"):
        fitted(state, 1000)
