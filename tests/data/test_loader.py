import shutil
from collections import Counter
from math import gcd

import numpy as np
import pytest
import torch

from pgolf.data import CoprimeStrideLoader, Prefetch, SequentialLoader, open_shard, write_shard
from pgolf.data.loader import _fnv1a
from pgolf.errors import PgolfError

LENGTH = 5
SIZES = (233, 180, 3, 301)
# every shard's tokens are distinct, so a token tells where it was read
STREAM = np.arange(sum(SIZES))


@pytest.fixture
def shards(tmp_path):
    starts = np.cumsum((0, *SIZES))
    for number, (start, size) in enumerate(zip(starts, SIZES, strict=False)):
        write_shard(tmp_path / f"x_train_{number:06d}.bin", STREAM[start : start + size])
    return sorted(tmp_path.glob("*.bin"))


def loaders(kind, shards, world, *, sequences=16, parts=8, seed=7, **settings):
    return [
        kind(
            shards,
            batch_tokens=sequences * LENGTH,
            sequence_length=LENGTH,
            accumulation=parts // world,
            world_size=world,
            rank=rank,
            seed=seed,
            **settings,
        )
        for rank in range(world)
    ]


def global_batch(team, step):
    """All rows of a step, micro-step by micro-step and rank by rank."""
    parts = [loader.batch(step, micro) for micro in range(team[0].accumulation) for loader in team]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_the_sequential_loader_is_the_submissions(shards):
    """Per micro-step world * (local + 1) tokens are consumed, and rank r takes its span of local + 1."""
    for world in (1, 2, 4, 8):
        team = loaders(SequentialLoader, shards, world)
        position, local = 0, 2 * LENGTH
        for step in range(9):
            for micro in range(8 // world):
                for rank in range(world):
                    span = STREAM[(position + rank * (local + 1) + np.arange(local + 1)) % len(STREAM)]
                    x, y = team[rank].batch(step, micro)
                    assert x.dtype == y.dtype == torch.int64
                    assert x.tolist() == span[:-1].reshape(-1, LENGTH).tolist()
                    assert y.tolist() == span[1:].reshape(-1, LENGTH).tolist()
                position += world * (local + 1)


@pytest.mark.parametrize("kind", [SequentialLoader, CoprimeStrideLoader])
@pytest.mark.parametrize("sequences", [8, 12, 24, 4])
def test_every_world_size_sees_the_same_sequences(shards, kind, sequences):
    shares = [(1, 1), (1, 2), (2, 2), (1, 4), (4, 4)] + ([(1, 8), (2, 8), (8, 8)] if sequences % 8 == 0 else [])
    for step in (0, 3, 20):
        seen = []
        for world, parts in shares:
            x, y = global_batch(loaders(kind, shards, world, sequences=sequences, parts=parts), step)
            assert x.shape == (sequences, LENGTH)
            seen.append((sorted(map(tuple, x.tolist())), sorted(map(tuple, y.tolist()))))
            (alone,) = loaders(kind, shards, 1, sequences=sequences, parts=1)
            assert x.equal(global_batch([alone], step)[0]), "and in the same order"
        assert all(batch == seen[0] for batch in seen)


@pytest.mark.parametrize("kind", [SequentialLoader, CoprimeStrideLoader])
def test_the_plan_is_what_is_read(shards, kind):
    for loader in loaders(kind, shards[::-1], 2):
        for step in (0, 5, 6, 2):
            for micro in range(4):
                x, y = loader.batch(step, micro)
                reads = loader.plan(step, micro)
                planned = [open_shard(shards[read.shard])[read.offset :][: read.length] for read in reads]
                # inputs begin, and targets end, every span: together they hold what was planned and nothing else
                assert set(np.concatenate(planned).tolist()) == set(x.flatten().tolist()) | set(y.flatten().tolist())
                assert (y - x).eq(1).sum() >= x.numel() - 2 * len(planned)


@pytest.mark.parametrize("kind", [SequentialLoader, CoprimeStrideLoader])
def test_batches_are_a_function_of_step_alone(shards, kind):
    (loader,) = loaders(kind, shards, 1)
    straight = {(step, micro): loader.batch(step, micro) for step in range(12) for micro in range(8)}
    (fresh,) = loaders(kind, shards, 1)
    for step, micro in [(11, 3), (2, 0), (3, 7), (2, 1), (11, 0), (0, 0)]:
        for mine, theirs in zip(fresh.batch(step, micro), straight[step, micro], strict=True):
            assert mine.equal(theirs)


def test_a_corpus_smaller_than_a_step_goes_round(tmp_path):
    write_shard(tmp_path / "x_train_000000.bin", [5, 6, 7])
    write_shard(tmp_path / "x_train_000001.bin", [8, 9])
    (loader,) = loaders(SequentialLoader, [tmp_path / "x_train_000000.bin", tmp_path / "x_train_000001.bin"], 1)
    x, y = loader.batch(0, 0)
    assert x.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]] and y.tolist() == [[6, 7, 8, 9, 5], [6, 7, 8, 9, 5]]
    assert loader.plan(0, 0) == [(0, 0, 3), (1, 0, 2)] * 2 + [(0, 0, 1)]
    assert loader.batch(0, 1)[0].tolist()[0] == [6, 7, 8, 9, 5]


@pytest.mark.parametrize("kind", [SequentialLoader, CoprimeStrideLoader])
def test_what_is_held_out_is_never_read(shards, kind):
    kept = len(STREAM) - 100
    for held_out in (0, 100):
        (loader,) = loaders(kind, shards[::-1], 1, parts=1, held_out=held_out)
        seen = np.concatenate([np.concatenate([part.flatten() for part in loader.batch(step, 0)]) for step in range(40)])
        assert (seen.max() < kept) == bool(held_out)
        assert seen.max() >= len(STREAM) - held_out - 2 * LENGTH, "and all that comes before it is"


def windows_of(loader, steps):
    """The windows of the first steps, as drawn: slice j holds every eighth window from j."""
    order = []
    for step in range(steps):
        slices = [loader.plan(step, micro) for micro in range(loader.accumulation)]
        assert len(slices) == loader.slices == 8
        order += [window for turn in zip(*slices, strict=True) for window in turn]
    return order


@pytest.mark.parametrize("seed", range(8))
def test_coprime_strides_visit_every_block_once_an_epoch(shards, seed):
    (loader,) = loaders(CoprimeStrideLoader, shards, 1, seed=seed)
    blocks, phases = loader._blocks.tolist(), loader._phase.tolist()
    assert blocks[2] == 0, "a shard shorter than a sequence gives none"
    for shard in (0, 1, 3):
        assert blocks[shard] == (SIZES[shard] - 1 - phases[shard]) // LENGTH
        assert gcd(int(loader._stride[shard]), blocks[shard]) == 1
    epoch = sum(blocks)
    reads = windows_of(loader, epoch // 16 + 1)[:epoch]
    expected = Counter(
        (shard, phases[shard] + block * LENGTH, LENGTH + 1) for shard in (0, 1, 3) for block in range(blocks[shard])
    )
    assert Counter(reads) == expected
    assert all(0 <= offset and offset + length <= SIZES[shard] for shard, offset, length in windows_of(loader, 60))


def test_a_shard_of_one_window_is_read_whole(tmp_path):
    write_shard(tmp_path / "x_train_000000.bin", range(LENGTH + 1))
    for seed in range(8):
        (loader,) = loaders(CoprimeStrideLoader, [tmp_path / "x_train_000000.bin"], 1, seed=seed)
        assert set(windows_of(loader, 3)) == {(0, 0, LENGTH + 1)}


def test_coprime_windows_are_their_own_text(shards):
    (loader,) = loaders(CoprimeStrideLoader, shards, 1)
    x, y = loader.batch(4, 5)
    assert x.shape == (2, LENGTH) and (y - x).eq(1).all() and (x[:, 1:] - x[:, :-1]).eq(1).all()


def test_coprime_depends_on_seed_and_names_but_not_on_place(shards, tmp_path):
    def order(files, seed=7):
        return windows_of(loaders(CoprimeStrideLoader, files, 1, seed=seed)[0], 4)

    base = order(shards)
    assert order(shards[::-1]) == base
    moved = [shutil.copy(shard, tmp_path.parent / shard.name) for shard in shards]
    assert order(moved) == base
    assert order(shards, seed=8) != base and order(shards, seed=-1) != base
    renamed = [shutil.copy(shard, tmp_path / shard.name.replace("x", "y")) for shard in shards]
    assert order(renamed) != base
    assert _fnv1a("") == 0xCBF29CE484222325 and _fnv1a("foobar") == 0x85944171F73967E8


def test_a_hundred_steps_back_nothing_is_drawn_anew(shards, monkeypatch):
    (loader,) = loaders(CoprimeStrideLoader, shards, 1)
    before = [loader.plan(step, 0) for step in range(150)]
    monkeypatch.setattr(loader, "_draw", None)
    assert [loader.plan(step, 0) for step in range(50, 150)] == before[50:]


def test_the_mix_of_shards_widens(tmp_path, monkeypatch):
    shards = [tmp_path / f"x_train_{number:06d}.bin" for number in range(70)]
    for number, path in enumerate(shards):
        write_shard(path, np.zeros(60 if number < 35 else 2000, np.uint16))
    monkeypatch.setattr(CoprimeStrideLoader, "RAMP_STEPS", 4)
    (loader,) = loaders(CoprimeStrideLoader, shards, 1, sequences=80)
    drawn = [read.shard for read in windows_of(loader, 6)]
    plans = [drawn[start : start + 80] for start in range(0, 480, 80)]
    assert [len(set(plan)) for plan in plans] == [8, 22, 36, 50, 64, 64]
    for plan in plans:
        number = len(set(plan))
        assert len(set(plan[:number])) == number, "interleaved: first one sequence of each chosen shard"
    large = sum(shard >= 35 for shard in plans[0])
    assert large > 60, "shards with more blocks left are drawn more often"


def test_what_a_loader_refuses(shards, tmp_path):
    with pytest.raises(PgolfError, match="80 tokens cannot be shared out: .* multiple of 3"):
        loaders(SequentialLoader, shards, 1, parts=3)
    with pytest.raises(PgolfError, match="20 tokens cannot be shared out"):
        loaders(SequentialLoader, shards, 8, sequences=4)
    with pytest.raises(PgolfError, match="no micro-step 4"):
        loaders(SequentialLoader, shards, 2)[0].batch(0, 4)
    with pytest.raises(PgolfError, match="rank 1 is not one of 1"):
        SequentialLoader(shards, batch_tokens=8, sequence_length=1, accumulation=1, world_size=1, rank=1, seed=0)
    for nothing in ([], [shards[2]]):
        with pytest.raises(PgolfError, match="no training shard holds one sequence of 5"):
            loaders(CoprimeStrideLoader, nothing, 1)
    with pytest.raises(PgolfError, match="no training tokens to read"):
        loaders(SequentialLoader, [], 1)
    with pytest.raises(PgolfError, match="cannot read shard .*gone"):
        loaders(SequentialLoader, [tmp_path / "gone"], 1)


@pytest.mark.parametrize("kind", [SequentialLoader, CoprimeStrideLoader])
def test_tokens_outside_the_vocabulary_are_caught_when_read(shards, kind):
    write_shard(shards[1], np.full(SIZES[1], 60_000))
    (loader,) = loaders(kind, shards, 1, parts=1, vocab_size=2000)
    with pytest.raises(PgolfError, match=r"x_train_000001.bin holds token 60000 at position \d+, .* has 2000"):
        for step in range(9):
            loader.batch(step, 0)


def test_prefetch_hands_out_the_same_batches(shards):
    (loader,) = loaders(CoprimeStrideLoader, shards, 1)
    (plain,) = loaders(CoprimeStrideLoader, shards, 1)
    asked = [(step, micro) for step in range(3) for micro in range(8)] + [(9, 2), (0, 0), (0, 1)]
    with Prefetch(loader) as ahead:
        for place in asked:
            for mine, theirs in zip(ahead.batch(*place), plain.batch(*place), strict=True):
                assert mine.equal(theirs)
            assert ahead.plan(*place) == plain.plan(*place)


def test_prefetch_reads_ahead_and_passes_errors_on(shards):
    (loader,) = loaders(SequentialLoader, shards, 1)
    read, batch = [], loader.batch

    def recorded(step, micro):
        read.append((step, micro))
        if step == 1:
            raise PgolfError("a bad shard")
        return batch(step, micro)

    loader.batch = recorded
    with Prefetch(loader) as ahead:
        ahead.batch(0, 6)
        ahead._ahead[1].result()
        assert read == [(0, 6), (0, 7)]
        ahead.batch(0, 7)
        with pytest.raises(PgolfError, match="a bad shard"):
            ahead.batch(1, 0)


@pytest.mark.gpu
def test_prefetch_to_a_gpu(shards):
    (loader,) = loaders(SequentialLoader, shards, 1)
    with Prefetch(loader, "cuda") as ahead:
        for step in range(3):
            x, y = ahead.batch(step, 0)
            expected = loader.batch(step, 0)
            assert x.is_cuda and x.cpu().equal(expected[0]) and y.cpu().equal(expected[1])
