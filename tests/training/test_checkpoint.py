import os
import threading

import pytest
import torch

from pgolf.files import FileError
from pgolf.training import checkpoint
from pgolf.training.errors import CheckpointError
from tests.training.tiny import tiny


def tensors():
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "count": torch.tensor(41),
        "random": torch.get_rng_state(),
        "empty": torch.zeros(0, 4),
    }


def test_what_was_written_is_read(tmp_path):
    path, kept = tmp_path / "c", tensors()
    checkpoint.write(path, kept, {"step": 3, "budget": {"elapsed": 0.1}})
    again, facts = checkpoint.read(path)
    assert facts["step"] == 3 and facts["budget"] == {"elapsed": 0.1}
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) and again[name].dtype == kept[name].dtype for name in kept)


def test_any_damage_is_one_clear_error(tmp_path):
    path = tmp_path / "c"
    checkpoint.write(path, tensors(), {"step": 3})
    whole = path.read_bytes()
    places = [*range(0, 12), *range(12, len(whole), 37), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(CheckpointError) as error:
            checkpoint.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read(path)


def test_other_files_are_refused(tmp_path):
    import safetensors.torch

    other = tmp_path / "other"
    safetensors.torch.save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read(other)
    with pytest.raises(CheckpointError, match="no such"):
        checkpoint.read(tmp_path / "missing")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    checkpoint.write(tmp_path / "c", tensors(), {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"format {checkpoint.FORMAT + 1}"):
        checkpoint.read(tmp_path / "c")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (tiny(muon_lr=0.5), "training.muon_lr"),
        (tiny(seed=8), "seed"),
        (tiny(model={"layers": 4}), "model.layers"),
        (tiny(adam_betas=(0.9, 0.99)), "training.adam_betas"),
    ],
)
def test_the_differing_setting_is_named(tmp_path, other, named):
    ours, theirs = checkpoint.binding(tiny(), "d"), checkpoint.binding(other, "d")
    with pytest.raises(CheckpointError, match=rf"{named} = "):
        checkpoint.check_settings(tmp_path, theirs, ours)


def test_other_data_is_named_and_harmless_settings_are_free(tmp_path):
    ours = checkpoint.binding(tiny(), "d")
    checkpoint.check_settings(tmp_path, checkpoint.binding(tiny(checkpoint_seconds=1.0, validate_every=3), "d"), ours)
    with pytest.raises(CheckpointError, match="data.digest"):
        checkpoint.check_settings(tmp_path, checkpoint.binding(tiny(), "e"), ours)


def test_a_save_does_not_see_later_changes(tmp_path):
    keeper = checkpoint.Checkpointer(tmp_path)
    assert not keeper.arrived(wait=True)
    busy = threading.Event()
    keeper._writer.submit(busy.wait)
    a = torch.ones(1000)
    keeper.save(5, {"a": a}, {})
    assert not keeper.arrived()
    a.zero_()
    busy.set()
    assert keeper.arrived(wait=True) and keeper.last == (5, tmp_path / checkpoint.NAME)
    assert not keeper.arrived(wait=True)
    keeper.close()
    read, facts = checkpoint.read(keeper.path)
    assert bool((read["a"] == 1).all()) and facts["step"] == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file system that is always full")
def test_a_failed_write_keeps_the_old_file_and_is_told(tmp_path, monkeypatch):
    keeper = checkpoint.Checkpointer(tmp_path)
    keeper.save(1, {"a": torch.zeros(4)}, {})
    assert keeper.arrived(wait=True)
    old = keeper.path.read_bytes()
    real = os.fdopen

    def full(handle, mode):
        os.close(handle)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(os, "fdopen", full)
    keeper.save(2, {"a": torch.ones(1 << 20)}, {})
    with pytest.raises(FileError, match="No space left"):
        keeper.arrived(wait=True)
    monkeypatch.undo()
    keeper.close()
    assert keeper.path.read_bytes() == old and keeper.last[0] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [checkpoint.NAME]


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    leftover = tmp_path / f".{checkpoint.NAME}.abc.partial"
    leftover.write_bytes(b"half")
    checkpoint.Checkpointer(tmp_path).close()
    assert not leftover.exists()
