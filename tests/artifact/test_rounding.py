import numpy as np
import pytest
import torch

from pgolf.artifact import gptq, grid, rounding
from pgolf.artifact.grid import PERCENTILES, Rounded, Steps
from tests.artifact import transcription


def matrix(rows, columns, spread=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * spread * torch.rand(rows, 1, generator=generator).add(0.2)


def second_moment(columns, correlated=True, seed=0):
    """Of inputs that share a few directions, and whose columns differ in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator)
    if correlated:
        x = x @ torch.randn(columns, columns, generator=generator) + 3 * torch.randn(4 * columns, 1, generator=generator)
    x = x * torch.linspace(0.3, 2, columns)
    return x.T @ x / len(x)


@pytest.mark.parametrize(("rows", "columns", "bits"), [(33, 70, 6), (7, 1301, 6), (19, 2100, 5), (5, 3, 4)])
@pytest.mark.parametrize("spread", [0.05, 0.7, 9.0])
def test_percentile_search_gives_the_published_integers(rows, columns, bits, spread):
    weight = matrix(rows, columns, spread)
    found = rounding.by_percentile(weight, Steps(bits, floor=True))
    codes, scales = transcription.lite(weight.numpy(), grid.largest_code(bits))
    assert np.array_equal(found.scales.numpy(), scales)
    assert np.array_equal(found.codes.numpy(), codes)


def test_embeddings_are_clipped_at_one_quantile():
    weight = matrix(29, 131, 2.0)
    found = rounding.by_quantile(weight, Steps(8, floor=True))
    codes, scales = transcription.embedding(weight.numpy())
    assert np.array_equal(found.codes.numpy(), codes) and np.array_equal(found.scales.numpy(), scales)


@pytest.mark.parametrize("columns", [1, 2, 3, 64, 517, 1792])
def test_row_clip_is_the_quantile_to_the_last_bit(columns):
    weight = matrix(41, columns)
    for percentile in (*PERCENTILES, rounding.EMBEDDING_QUANTILE):
        expected = torch.quantile(weight.abs(), percentile, dim=-1)
        assert torch.equal(grid.row_clip(weight, percentile), expected)


def test_a_stack_is_rounded_matrix_by_matrix():
    stack = torch.stack([matrix(9, 150, spread, seed) for seed, spread in enumerate((0.1, 1.0, 3.0))])
    stack[1, 2, 3] = 60.0
    moments = torch.stack([second_moment(150, seed=seed) for seed in range(3)])
    steps = Steps(5)
    for apart, together in (
        ([rounding.by_percentile(one, steps) for one in stack], rounding.by_percentile(stack, steps)),
        (
            [gptq.standard(w[None], h[None], steps) for w, h in zip(stack, moments, strict=True)],
            gptq.standard(stack, moments, steps),
        ),
    ):
        for number, one in enumerate(apart):
            assert torch.equal(one.codes.reshape(9, 150), together.codes[number])
            assert torch.equal(one.scales.reshape(9), together.scales[number])


def test_sdclip_clips_at_standard_deviations():
    weight = matrix(23, 400)
    found = rounding.by_sigma(weight, Steps(6, sigmas=3.0))
    expected = (3.0 * weight.numpy().std(1, ddof=1) / 31).astype(np.float16)
    assert np.allclose(found.scales.numpy(), expected, rtol=2e-3)
    assert np.array_equal(found.codes.numpy(), np.clip(np.round((weight / found.scales.float()[:, None]).numpy()), -31, 31))


def test_the_steps_may_be_stretched_floored_and_few():
    weight = matrix(50, 90, 0.1)
    plain = rounding.by_sigma(weight, Steps(6, sigmas=4.0)).scales.double()
    wide = rounding.by_sigma(weight, Steps(6, stretch=1.7, sigmas=4.0)).scales.double()
    assert torch.allclose(wide / plain, torch.full((50,), 1.7, dtype=torch.float64), rtol=2e-3)
    floored = rounding.by_percentile(weight, Steps(6, floor=True)).scales
    assert torch.equal(floored, torch.full((50,), 1 / 31).half())
    few = rounding.by_sigma(weight, Steps(6, per_octave=4, sigmas=4.0)).scales.double().log2() * 4
    assert (few - few.round()).abs().max() < 0.01
    assert (few / 4 - plain.log2()).abs().max() < 0.13


def test_a_row_of_zeros_and_huge_rows_stay_finite():
    weight = torch.zeros(3, 40)
    weight[1] = 1e30
    for found in (rounding.by_percentile(weight, Steps(6)), rounding.by_sigma(weight, Steps(6, sigmas=12.0))):
        assert found.values().isfinite().all() and not found.codes[0].any()


@pytest.mark.parametrize(("rows", "columns"), [(6, 40), (5, 150)])
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_published_gptq_gives_the_published_integers(rows, columns, spread):
    weight, moment = matrix(rows, columns, spread), second_moment(columns)
    pruned = rounding.without_smallest(weight, 0.03)
    found = gptq.published(pruned[None], moment[None], Steps(5, floor=True))
    codes, scales = transcription.published(weight.numpy(), moment.numpy(), 15)
    assert np.array_equal(found.scales[0].numpy(), scales)
    # float32 against float64: a value between two codes may fall to either side, and then pass the difference on
    assert np.mean(found.codes[0].numpy() == codes) > 0.995


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("sigmas", [0.0, 4.0])
def test_gptq_loses_less_of_the_output_than_rounding(bits, sigmas):
    weight, moment = matrix(40, 150), second_moment(150)
    steps = Steps(bits, sigmas=sigmas)
    plain = rounding.by_sigma(weight, steps) if sigmas else rounding.by_percentile(weight, steps)
    found = gptq.standard(weight[None], moment[None], steps)
    lost = gptq.output_error(weight[None], found.values(), moment[None])
    assert lost < 0.6 * gptq.output_error(weight[None], plain.values()[None], moment[None])


def test_gptq_with_uncorrelated_inputs_is_rounding():
    weight = matrix(12, 140)
    found = gptq.standard(weight[None], torch.eye(140)[None], Steps(6, sigmas=4.0))
    assert torch.equal(found.codes[0], rounding.by_sigma(weight, Steps(6, sigmas=4.0)).codes)


def test_columns_that_nothing_reaches_become_zero():
    weight, moment = matrix(12, 140), second_moment(140)
    moment[:, 7] = moment[7] = 0
    found = gptq.standard(weight[None], moment[None], Steps(6))
    assert not found.codes[0, :, 7].any() and found.codes[0, :, 8].any()
    nothing = gptq.standard(weight[None], torch.zeros(1, 140, 140), Steps(6))
    assert not nothing.codes.any()
    assert gptq.published(weight[None], torch.zeros(1, 140, 140), Steps(5)).values().isfinite().all()


def test_damping_keeps_a_singular_moment_usable():
    weight = matrix(12, 100)
    direction = torch.ones(100, 1)
    found = gptq.standard(weight[None], (direction @ direction.T)[None], Steps(6), damping=0.01)
    assert found.values().isfinite().all()
    lost = (weight - found.values()[0]) @ direction
    plain = (weight - rounding.by_percentile(weight, Steps(6)).values()) @ direction
    assert lost.square().sum() < 0.1 * plain.square().sum()


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_pruning_zeroes_what_lies_below_the_quantile(share):
    weight = matrix(31, 77)
    threshold = torch.quantile(weight.abs().flatten(), share)
    assert torch.equal(rounding.without_smallest(weight, share), torch.where(weight.abs() < threshold, 0.0, weight))


def test_the_cheapest_ones_go_first():
    codes = torch.tensor([[1, -1, 2, 0], [1, 3, -1, 1]], dtype=torch.int8)
    near, far = Rounded(codes, torch.tensor([0.5, 2.0]).half()), Rounded(-codes, torch.tensor([1.0, 0.1]).half())
    first, second = rounding.without_ones([near, far], 0.5)
    assert second.codes.tolist() == [[-1, 1, -2, 0], [0, -3, 0, 0]]
    assert first.codes.tolist() == [[0, 0, 2, 0], [1, 3, -1, 1]]
    everything = rounding.without_ones([near, far], 1.0)
    assert all((one.codes.abs() != 1).all() for one in everything)
    assert near.codes[0, 0] == 1


def test_a_correction_takes_the_largest_directions_away():
    generator = torch.Generator().manual_seed(1)
    low = torch.randn(60, 3, generator=generator) @ torch.randn(3, 90, generator=generator)
    error = low + 0.01 * torch.randn(60, 90, generator=generator)
    left = [float((error - rounding.low_rank(error, rank).values()).norm() / error.norm()) for rank in (1, 2, 3)]
    assert 1 > left[0] > left[1] > left[2]


@pytest.mark.parametrize(("rows", "columns", "rank"), [(200, 128, 4), (64, 192, 1), (40, 320, 3)])
def test_a_correction_has_the_published_factors(rows, columns, rank):
    error = matrix(rows, columns, 0.01)
    a, b, product = transcription.asymmetric_factors(error.numpy(), rank)
    found = rounding.low_rank(error, rank)
    assert found.left.codes.shape == (rank, rows) and found.right.codes.shape == b.shape
    assert found.left.codes.min() >= -2 and found.left.codes.max() == 1 and found.right.codes.min() >= -8
    assert np.array_equal(found.left.codes.numpy().T, a) and np.array_equal(found.right.codes.numpy(), b)
    assert np.allclose(found.values().numpy(), product, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns", "bits", "sigmas"), [(24, 64, 6, 13.0), (16, 300, 6, 11.5), (40, 64, 7, 14.0)])
def test_sdclip_gptq_gives_the_published_integers(rows, columns, bits, sigmas):
    weight, moment = matrix(rows, columns), second_moment(columns)
    moment[5], moment[:, 5] = 0, 0  # nothing reaches this column, which counts towards the rows' deviations all the same
    codes, scales = transcription.sdclip_gptq(weight.numpy(), moment.numpy(), grid.largest_code(bits), sigmas)
    found = gptq.standard(weight[None], moment[None], Steps(bits, sigmas=sigmas))
    assert np.array_equal(found.scales[0].numpy(), scales)
    assert np.array_equal(found.codes[0].numpy(), codes)
