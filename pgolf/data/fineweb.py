"""The challenge's public data: FineWeb, already tokenized, from the Hugging Face hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pgolf.data.dataset import TABLE, TOKENIZER, Dataset, Progress, open_dataset, shard_entry, shards_digest, write_table
from pgolf.data.errors import DataError
from pgolf.data.shards import check_shard, token_count
from pgolf.data.tokenizer import load_tokenizer
from pgolf.files import sha256_of, system_error

REPOSITORY = "willdepueoai/parameter-golf"
ROOT = "datasets"
UNFINISHED = ".unfinished"

# Called as download(remote path, folder): fetches the file into the folder, continuing an earlier attempt if it can,
# and returns where it lies and the sha256 that its publisher states, if known.
Download = Callable[[str, Path], tuple[Path, str | None]]


def fetch_fineweb(
    variant: str,
    shards: int,
    folder: str | Path,
    *,
    repository: str | None = None,
    download: Download | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Fetches validation and the first `shards` training shards of a variant ("sp1024") and opens the dataset.

    A file gets its name when it is whole and checked: size, header, every token, the publisher's sha256. dataset.json
    lists what has arrived, so a run that was cut off continues; what is already there is compared with its sha256 and
    fetched again where it differs. Progress counts files. Another repository of the same layout can be named, also by
    the environment's MATCHED_FINEWEB_REPO_ID.
    """
    folder = Path(folder)
    repository = repository or os.environ.get("MATCHED_FINEWEB_REPO_ID") or REPOSITORY
    download = download or hub_download(repository)
    unfinished = folder / UNFINISHED
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise system_error("write", folder, error) from error

    def fetch(remote: str) -> tuple[Path, str | None]:
        try:
            return download(remote, unfinished)
        except DataError:
            raise
        except Exception as error:  # the hub's client raises errors of many libraries
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise DataError(f"cannot fetch {remote} from {repository}: {reason}; run again to continue") from error

    manifest, _ = fetch(f"{ROOT}/manifest.json")
    train_files, val_files, model = _catalogue(manifest, variant, repository)
    if not 0 <= shards <= train_files:
        raise DataError(f"{variant} in {repository} has {train_files} training shards; {shards} is not possible")

    source = {"repository": repository, "variant": variant}
    table = _table_so_far(folder, source)
    have = {entry["file"]: entry["sha256"] for entry in [*table["shards"], table["tokenizer"]]}
    names = [("val", f"fineweb_val_{number:06d}.bin") for number in range(val_files)]
    names += [("train", f"fineweb_train_{number:06d}.bin") for number in range(shards)]

    tokenizer_path = folder / TOKENIZER
    if not _is_whole(tokenizer_path, have):
        _name(_checked(fetch(f"{ROOT}/{model}")), tokenizer_path)
    tokenizer = load_tokenizer(tokenizer_path)
    table["tokenizer"] = {"file": TOKENIZER, "sha256": sha256_of(tokenizer_path)}
    table |= {"vocab_size": tokenizer.vocab_size, "lossless": tokenizer.lossless}
    entries = {entry["file"]: entry for entry in table["shards"]}
    for done, (split, name) in enumerate(names):
        if progress:
            progress(name, done, len(names))
        if _is_whole(folder / name, have):
            continue
        path = _checked(fetch(f"{ROOT}/datasets/fineweb10B_{variant}/{name}"), tokenizer.vocab_size)
        entry = shard_entry(path, split) | {"file": name}
        _name(path, folder / name)
        entries[name] = entry
        table["shards"] = sorted(entries.values(), key=lambda entry: entry["file"])
        table["digest"] = shards_digest(table["shards"])
        table["tokens"] = {
            side: sum(entry["tokens"] for entry in entries.values() if entry["split"] == side) for side in ("train", "val")
        }
        write_table(folder, table)
    if progress:
        progress("all files", len(names), len(names))
    shutil.rmtree(unfinished, ignore_errors=True)
    return open_dataset(folder)


def _catalogue(manifest: Path, variant: str, repository: str) -> tuple[int, int, str]:
    """From the publisher's manifest: the numbers of training and validation shards, and where the tokenizer is."""
    try:
        content = json.loads(manifest.read_bytes())
        datasets = {entry["name"]: entry for entry in content["datasets"]}
        tokenizers = {entry["name"]: entry for entry in content["tokenizers"]}
        entry = datasets.get(f"fineweb10B_{variant}")
        if entry is None:
            known = ", ".join(sorted(name.removeprefix("fineweb10B_") for name in datasets)) or "nothing"
            raise DataError(
                f"{repository} has no variant {variant}; it has {known} (MATCHED_FINEWEB_REPO_ID names another repository)"
            )
        stats = entry["stats"]
        model = tokenizers[entry["tokenizer_name"]]["model_path"]
        return int(stats["files_train"]), int(stats["files_val"]), str(model)
    except OSError as error:
        raise system_error("read", manifest, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the manifest of {repository} does not list {variant} as expected ({error!r})") from error


def _table_so_far(folder: Path, source: dict) -> dict:
    empty = {"format": 1, "name": "fineweb", "source": source, "tokenizer": {"file": TOKENIZER, "sha256": ""}}
    empty |= {"shards": [], "tokens": {}}
    path = folder / TABLE
    if not path.is_file():
        if any(folder.glob("*.bin")):
            raise DataError(f"{folder} holds shards but no {TABLE}; fetch into a new folder")
        return empty
    try:
        table = json.loads(path.read_bytes())
        if table.get("source") != source:
            raise DataError(f"{folder} holds other data ({table.get('source')}); fetch into a new folder")
        [(entry["file"], entry["sha256"], entry["tokens"], entry["split"]) for entry in table["shards"]]
        return empty | table
    except OSError as error:
        raise system_error("read", path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); delete {folder} and fetch again") from error


def _is_whole(path: Path, have: dict[str, str]) -> bool:
    return path.is_file() and path.name in have and sha256_of(path) == have[path.name]


def _checked(fetched: tuple[Path, str | None], vocab_size: int | None = None) -> Path:
    """Compares a fetched file with its publisher's sha256 and, a shard, with its header and the vocabulary.

    A wrong one is removed, so that the next run starts it anew.
    """
    path, promised = fetched
    try:
        if promised is not None and promised != (actual := sha256_of(path)):
            raise DataError(f"{path.name} arrived damaged: its sha256 is {actual}, not {promised}; run again")
        if vocab_size is not None:
            token_count(path)
            check_shard(path, vocab_size)
    except DataError:
        path.unlink(missing_ok=True)
        raise
    return path


def _name(path: Path, target: Path) -> None:
    """Moves a whole file to its final name, once it is safe on disk."""
    try:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, target)
    except OSError as error:
        raise system_error("write", target, error) from error


def hub_download(repository: str) -> Download:
    """Downloads through huggingface_hub, which continues a file that was cut off."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise DataError("fetching FineWeb needs huggingface_hub; install it with: pip install 'pgolf[data]'") from error

    def download(remote: str, folder: Path) -> tuple[Path, str | None]:
        path = Path(hf_hub_download(repository, remote, repo_type="dataset", local_dir=folder))
        tag = get_hf_file_metadata(hf_hub_url(repository, remote, repo_type="dataset")).etag or ""
        # large files carry their sha256 as the tag, small ones a git hash of 40 digits
        return path, tag if len(tag) == 64 else None

    return download
