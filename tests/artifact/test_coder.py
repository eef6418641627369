import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.artifact import coder, halves
from pgolf.artifact.coder import Outline
from pgolf.artifact.errors import ArtifactError

fast = settings(max_examples=40, deadline=None)


RANK = 8


def outlines_of(matrices):
    return [Outline(kind, codes.shape, largest, RANK) for kind, codes, largest in matrices]


def encoded(matrices):
    return coder.encode_matrices(outlines_of(matrices), [codes for _, codes, _ in matrices])


def assert_back(data, outlines, matrices):
    for codes, found in zip(matrices, coder.decode_matrices(data, outlines), strict=True):
        assert found.dtype == np.int8 and np.array_equal(codes, found)


def assert_round_trip(matrices):
    data = encoded(matrices)
    assert_back(data, outlines_of(matrices), [codes for _, codes, _ in matrices])
    return data


@st.composite
def hostile_matrices(draw):
    """Codes as no network has them: constant, alternating, extreme, spread anyhow; many shapes, few roles."""
    matrices = []
    for _ in range(draw(st.integers(0, 4))):
        largest = draw(st.sampled_from([1, 3, 7, 15, 31, 63, 127]))
        rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 40))
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        codes = {
            "zeros": lambda r, c, m=largest: np.zeros((r, c)),
            "ends": lambda r, c, m=largest, g=random: g.choice([-m, m], (r, c)),
            "flat": lambda r, c, m=largest, g=random: g.integers(-m, m + 1, (r, c)),
            "rare": lambda r, c, m=largest, g=random: np.where(g.random((r, c)) < 0.05, m, 0),
            "normal": lambda r, c, m=largest, g=random: np.clip(np.round(g.normal(0, m / 3, (r, c))), -m, m),
        }[draw(st.sampled_from(["zeros", "ends", "flat", "rare", "normal"]))](rows, columns)
        matrices.append((draw(st.sampled_from("abc")), codes.astype(np.int8), largest))
    return matrices


@fast
@given(hostile_matrices())
def test_any_codes_come_back(matrices):
    assert_round_trip(matrices)


@fast
@given(st.lists(st.integers(0, 65535), max_size=300))
def test_any_float16_come_back(words):
    numbers = np.array(words, np.uint16).view(np.float16)
    found = halves.decode_halves(halves.encode_halves(numbers), len(numbers))
    assert np.array_equal(found.view(np.uint16), numbers.view(np.uint16))


def test_long_silence_then_noise_comes_back():
    """A model that has become certain must still find its way: variances have a floor, every code a probability."""
    random = np.random.default_rng(0)
    codes = np.zeros((400, 64), np.int8)
    codes[350:] = random.integers(-127, 128, (50, 64))
    assert_round_trip([("a", codes, 127), ("a", np.full((90, 64), -127, np.int8), 127), ("a", codes, 127)])


def gaussian(rows, columns, deviation, largest, seed=0):
    random = np.random.default_rng(seed)
    return np.clip(np.round(random.normal(0, 1, (rows, columns)) * deviation), -largest, largest).astype(np.int8)


def entropy(deviation):
    return math.log2(deviation * math.sqrt(2 * math.pi * math.e))


@pytest.mark.parametrize(("deviation", "largest"), [(2.4, 31), (7.5, 31), (30.0, 127)])
def test_gaussian_codes_cost_their_entropy(deviation, largest):
    codes = gaussian(600, 256, deviation, largest)
    bits = 8 * len(assert_round_trip([("a", codes, largest)])) / codes.size
    assert abs(bits - entropy(deviation)) < 0.012 * entropy(deviation)


def test_gaussian_codes_that_do_not_differ_cost_hardly_more():
    """Where rows and columns are alike, learning that they might differ must cost next to nothing."""
    codes = gaussian(500, 192, 2.45, 31)
    counts = np.bincount(codes.ravel().astype(int) + 31)
    share = counts[counts > 0] / codes.size
    bits = 8 * len(encoded([("a", codes, 31)])) / codes.size
    assert bits < -(share * np.log2(share)).sum() + 0.006


def test_variances_of_rows_and_columns_are_learnt():
    random = np.random.default_rng(1)
    rows, columns = np.exp(random.normal(0, 0.3, (500, 1))), np.exp(random.normal(0, 0.5, (1, 200)))
    codes = np.clip(np.round(random.normal(0, 5, (500, 200)) * rows * columns), -127, 127).astype(np.int8)
    ideal = np.mean([entropy(max(5 * r * c, 0.5)) for r in rows[:, 0] for c in columns[0]])
    alike = entropy(codes.astype(float).std())
    bits = 8 * len(assert_round_trip([("a", codes, 127)])) / codes.size
    assert bits < alike - 0.5 * (alike - ideal) and bits < ideal * 1.03


def test_low_rank_parts_are_learnt():
    random = np.random.default_rng(2)
    signal = random.normal(0, 1, (700, 2)) @ random.normal(0, 4, (2, 160))
    codes = np.clip(np.round(signal + random.normal(0, 3, (700, 160))), -127, 127).astype(np.int8)
    bits = 8 * len(assert_round_trip([("a", codes, 127)])) / codes.size
    assert bits < entropy(codes.astype(float).std()) - 0.5
    assert bits < entropy(3.0) + 0.35


def test_zeros_of_pruning_are_learnt():
    random = np.random.default_rng(6)
    codes = gaussian(500, 256, 6.0, 31)
    pruned = np.where(random.random(codes.shape) < 0.3, 0, codes).astype(np.int8)
    counts = np.bincount(pruned.ravel().astype(int) + 31)
    share = counts[counts > 0] / pruned.size
    bits = 8 * len(assert_round_trip([("a", pruned, 31)])) / pruned.size
    assert bits < -(share * np.log2(share)).sum() + 0.12 < 8 * len(encoded([("a", codes, 31)])) / codes.size


def test_what_one_matrix_teaches_helps_the_next_of_its_role():
    random = np.random.default_rng(3)
    columns = np.exp(random.normal(0, 1.0, (1, 300)))
    draw = lambda: np.clip(np.round(random.normal(0, 4, (12, 300)) * columns), -127, 127).astype(np.int8)
    first, second = draw(), draw()
    together = len(encoded([("a", first, 127), ("a", second, 127)]))
    apart = len(encoded([("a", first, 127), ("b", second, 127)]))
    assert together < 0.98 * apart


SCALES = {
    "as they are": lambda scales: scales,
    "zero": lambda scales: 0 * scales,
    "one infinite": lambda scales: np.append(scales[1:], np.float16(np.inf)),
    "no numbers": lambda scales: scales * np.float16(np.nan),
    "one negative": lambda scales: np.append(scales[1:], -scales[0]),
    "too few": lambda scales: scales[:0],
}


def fed(scales_of):
    """A matrix whose rows differ, and one that multiplies them, so that its columns do."""
    random = np.random.default_rng(7)
    sizes = np.exp(random.normal(0, 0.6, 400))
    up = gaussian(400, 64, 2.4, 31)
    down = np.clip(np.round(random.normal(0, 3, (40, 400)) * sizes), -31, 31).astype(np.int8)
    scales = scales_of((0.01 * sizes).astype(np.float16))
    if len(scales) != len(up):
        up = up[: len(scales)]
    outlines = [
        Outline("up", up.shape, 31, scales=scales),
        Outline("down", down.shape, 31, scales=np.ones(40, np.float16), feeder=0),
    ]
    return outlines, [up, down]


@pytest.mark.parametrize("name", SCALES)
def test_columns_start_from_the_rows_that_feed_them(name):
    """Forty rows are too few to learn 400 columns well. Scales that say nothing, or the wrong thing, do little harm."""
    outlines, matrices = fed(SCALES[name])
    with_feeder = coder.encode_matrices(outlines, matrices)
    assert_back(with_feeder, outlines, matrices)
    alone = coder.encode_matrices([outline._replace(feeder=None) for outline in outlines], matrices)
    saved = (len(alone) - len(with_feeder)) / len(alone)
    assert saved > 0.012 if name == "as they are" else -0.02 < saved <= 0


@pytest.mark.parametrize("rank", [0, 1, 32])
def test_any_number_of_directions_comes_back(rank):
    random = np.random.default_rng(8)
    signal = random.normal(0, 3, (90, 2)) @ random.normal(0, 3, (2, 33))
    matrices = [np.clip(np.round(signal), -63, 63).astype(np.int8), np.zeros((70, 33), np.int8)]
    outlines = [Outline("a", codes.shape, 63, rank) for codes in matrices]
    assert_back(coder.encode_matrices(outlines, matrices), outlines, matrices)


def test_codes_of_another_shape_are_not_encoded():
    with pytest.raises(ValueError, match="not"):
        coder.encode_matrices([Outline("a", (2, 3), 31)], [np.zeros((3, 2), np.int8)])


def test_shapes_other_than_gaussian_are_met():
    random = np.random.default_rng(4)
    for draw in (random.laplace(0, 6, (500, 256)), random.triangular(-30, 0, 30, (500, 256))):
        codes = np.clip(np.round(draw), -127, 127).astype(np.int8)
        bits = 8 * len(assert_round_trip([("a", codes, 127)])) / codes.size
        counts = np.bincount(codes.ravel().astype(int) + 128)
        share = counts[counts > 0] / codes.size
        assert bits < -(share * np.log2(share)).sum() + 0.04


def test_the_stream_is_the_same_on_every_machine():
    """Bytes that were written down once. If this fails without a change of the format, two machines disagree."""
    tables, guesses, kurtoses = coder.shape_tables()
    assert tables.shape == (8, 1025) and (np.diff(tables) >= 0).all() and (tables[:, 512] == 1 << 29).all()
    assert (np.diff(kurtoses) < 0).all() and abs(kurtoses[4] - 3) < 1e-6
    digest = hashlib.sha256(tables.astype("<i8").tobytes()).hexdigest()[:16]
    spread = (np.arange(40 * 48) * 2654435761 % 2**32) / 2**32 - 0.5
    codes = np.clip(np.round(spread * 20 + spread * spread * spread * 200), -31, 31).astype(np.int8).reshape(40, 48)
    scales = (np.arange(40) + 9).astype(np.float16)
    outlines = [
        Outline("a", (40, 48), 31, 8, scales=scales),
        Outline("a", (40, 48), 31, 8),
        Outline("b", (48, 40), 31, feeder=0),
    ]
    data = coder.encode_matrices(outlines, [codes, codes[::-1], codes.T])
    assert (digest, len(data), hashlib.sha256(data).hexdigest()[:16]) == (TABLES, LENGTH, STREAM)


TABLES, LENGTH, STREAM = "0ae0c2e159769e58", 3953, "3ea33061859c7e17"


def test_scales_on_a_grid_cost_a_fraction():
    random = np.random.default_rng(5)
    logs = random.normal(-6, 0.2, 6000)
    free, grid = (np.exp2(values).astype(np.float16) for values in (logs, np.round(logs * 16) / 16))
    assert len(halves.encode_halves(grid)) < 0.5 * len(halves.encode_halves(free)) < 0.75 * free.nbytes


def test_a_code_beyond_the_largest_is_not_encoded():
    with pytest.raises(ValueError, match="beyond"):
        encoded([("a", np.array([[32]], np.int8), 31)])


def test_a_stream_cut_off_or_continued_is_refused():
    matrices = [("a", gaussian(30, 50, 5, 31), 31)]
    data = encoded(matrices)
    for bad in (data[:-1], data + b"\0", b"", data[:20]):
        with pytest.raises(ArtifactError):
            coder.decode_matrices(bad, outlines_of(matrices))
    with pytest.raises(ArtifactError):
        coder.decode_matrices(data, [Outline("a", (31, 50), 31, RANK)])
