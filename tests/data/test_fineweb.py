import hashlib
import json
import shutil
import sys
import types

import numpy as np
import pytest

from pgolf.data import open_shard, write_shard
from pgolf.data.fineweb import fetch_fineweb
from pgolf.errors import PgolfError


class Hub:
    """A repository in a folder; counts what is fetched and can fail."""

    def __init__(self, root, tokenizer):
        self.root = root
        self.fetched = []
        self.fails_at = None
        self.damages = None
        data = root / "datasets" / "datasets" / "fineweb10B_sp300"
        for number in range(3):
            write_shard(data / f"fineweb_train_{number:06d}.bin", np.arange(50 + number) % 300)
        write_shard(data / "fineweb_val_000000.bin", np.arange(40))
        (root / "datasets" / "tokenizers").mkdir()
        shutil.copy(tokenizer, root / "datasets" / "tokenizers" / "fineweb_300_bpe.model")
        manifest = {
            "datasets": [{"name": "fineweb10B_sp300", "tokenizer_name": "sp300", "stats": {"files_train": 3, "files_val": 1}}],
            "tokenizers": [{"name": "sp300", "model_path": "tokenizers/fineweb_300_bpe.model"}],
        }
        (root / "datasets" / "manifest.json").write_text(json.dumps(manifest))

    def __call__(self, remote, folder):
        name = remote.rsplit("/", 1)[-1]
        if name == self.fails_at:
            raise ConnectionError("the line is dead\nand so on")
        target = folder / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        data = (self.root / remote).read_bytes()
        self.fetched.append(name)
        target.write_bytes(data[:-2] if name == self.damages else data)
        return target, hashlib.sha256(data).hexdigest() if name.endswith(".bin") else None


@pytest.fixture
def hub(tmp_path, tiny_tokenizer):
    return Hub(tmp_path / "hub", tiny_tokenizer)


def test_fetches_opens_and_does_not_fetch_twice(hub, tmp_path):
    seen = []
    folder = tmp_path / "data"
    first = fetch_fineweb("sp300", 2, folder, download=hub, progress=lambda *args: seen.append(args))
    assert len(first.train_shards) == 2 and first.vocab_size == 300 and first.name == "fineweb"
    assert open_shard(first.train_shards[1]).tolist() == list(range(51))
    names = ["fineweb_train_000000.bin", "fineweb_train_000001.bin", "fineweb_val_000000.bin"]
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", *names, "tokenizer.model"]
    assert seen[0] == ("fineweb_val_000000.bin", 0, 3) and seen[-1] == ("all files", 3, 3)
    table = json.loads((folder / "dataset.json").read_text())
    assert [shard["sha256"] for shard in table["shards"]] == [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names
    ]
    assert table["tokens"] == {"train": 101, "val": 40}

    hub.fetched.clear()
    more = fetch_fineweb("sp300", 3, folder, download=hub)
    assert hub.fetched == ["manifest.json", "fineweb_train_000002.bin"] and len(more.train_shards) == 3
    assert more.digest != first.digest


def test_a_changed_file_is_fetched_again(hub, tmp_path):
    fetched = fetch_fineweb("sp300", 1, tmp_path / "data", download=hub)
    write_shard(fetched.train_shards[0], np.arange(50)[::-1])
    fetched.tokenizer_path.write_bytes(b"damaged")
    hub.fetched.clear()
    again = fetch_fineweb("sp300", 1, tmp_path / "data", download=hub)
    assert hub.fetched == ["manifest.json", "fineweb_300_bpe.model", "fineweb_train_000000.bin"]
    assert again == fetched and open_shard(again.train_shards[0]).tolist() == list(range(50))


def test_a_dead_line_is_one_line_and_the_next_run_continues(hub, tmp_path):
    hub.fails_at = "fineweb_train_000001.bin"
    with pytest.raises(PgolfError, match="cannot fetch .*train_000001.bin from .*: the line is dead; run again") as error:
        fetch_fineweb("sp300", 3, tmp_path / "data", download=hub)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data" / "fineweb_train_000001.bin").exists()
    hub.fails_at = None
    hub.fetched.clear()
    assert len(fetch_fineweb("sp300", 3, tmp_path / "data", download=hub).train_shards) == 3
    assert hub.fetched == ["manifest.json", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]


def test_a_damaged_arrival_gets_no_name(hub, tmp_path):
    hub.damages = "fineweb_train_000000.bin"
    with pytest.raises(PgolfError, match="train_000000.bin arrived damaged: its sha256"):
        fetch_fineweb("sp300", 1, tmp_path / "data", download=hub)
    assert not list(tmp_path.glob("data/**/fineweb_train_000000.bin"))
    unsigned = lambda remote, folder: (hub(remote, folder)[0], None)
    with pytest.raises(PgolfError, match="promises 50 tokens"):
        fetch_fineweb("sp300", 1, tmp_path / "data", download=unsigned)
    hub.damages = None
    write_shard(hub.root / "datasets/datasets/fineweb10B_sp300/fineweb_train_000000.bin", [300])
    with pytest.raises(PgolfError, match="holds token 300"):
        fetch_fineweb("sp300", 1, tmp_path / "data", download=hub)
    assert not list(tmp_path.glob("data/**/fineweb_train_000000.bin"))


def test_what_cannot_be_fetched(hub, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    with pytest.raises(PgolfError, match="has no variant sp9; it has sp300"):
        fetch_fineweb("sp9", 1, folder, download=hub)
    with pytest.raises(PgolfError, match="has 3 training shards; 4 is not possible"):
        fetch_fineweb("sp300", 4, folder, download=hub)
    fetch_fineweb("sp300", 0, folder, download=hub)
    with pytest.raises(PgolfError, match="holds other data .*fetch into a new folder"):
        fetch_fineweb("sp300", 0, folder, repository="someone/else", download=hub)
    monkeypatch.setenv("MATCHED_FINEWEB_REPO_ID", "a/mirror")
    with pytest.raises(PgolfError, match="holds other data"):
        fetch_fineweb("sp300", 0, folder, download=hub)
    monkeypatch.delenv("MATCHED_FINEWEB_REPO_ID")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(PgolfError, match="dataset.json is damaged"):
        fetch_fineweb("sp300", 0, folder, download=hub)
    (folder / "dataset.json").unlink()
    with pytest.raises(PgolfError, match="holds shards but no dataset.json"):
        fetch_fineweb("sp300", 0, folder, download=hub)
    (hub.root / "datasets" / "manifest.json").write_text("{}")
    with pytest.raises(PgolfError, match="manifest of .* does not list sp300"):
        fetch_fineweb("sp300", 0, tmp_path / "other", download=hub)
    (tmp_path / "file").write_text("")
    with pytest.raises(PgolfError, match="cannot write .*file"):
        fetch_fineweb("sp300", 0, tmp_path / "file" / "x", download=hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PgolfError, match=r"install it with: pip install 'pgolf\[data\]'"):
        fetch_fineweb("sp300", 0, folder)


def test_the_hubs_client_is_asked_rightly(hub, tmp_path, monkeypatch):
    """Large files carry their sha256 as the tag; other tags are not checksums."""
    client = types.ModuleType("huggingface_hub")
    client.hf_hub_download = lambda repository, remote, *, repo_type, local_dir: str(hub(remote, local_dir)[0])
    client.hf_hub_url = lambda repository, remote, *, repo_type: f"{repository} {repo_type} {remote}"
    tags = {"fineweb_train_000000.bin": "0" * 64}
    client.get_hf_file_metadata = lambda url: types.SimpleNamespace(etag=tags.get(url.rsplit("/", 1)[-1], "a" * 40))
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert len(fetch_fineweb("sp300", 0, tmp_path / "data").val_shards) == 1
    with pytest.raises(PgolfError, match=f"train_000000.bin arrived damaged: .* not {'0' * 64}"):
        fetch_fineweb("sp300", 1, tmp_path / "data")
