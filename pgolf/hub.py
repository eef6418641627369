"""Artifacts on the Hugging Face Hub: a run's folder to a repository with its report as the model card, and back.

Pulled are the three files that this package reads and never executes; SHA256SUMS beside them, in the form of sha256sum, says
what they are, and the artifact's own checksum is compared as well.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgolf.artifact.container import read_container
from pgolf.config import read_toml
from pgolf.errors import PgolfError
from pgolf.files import atomic_folder, sha256_of, temporary_folder
from pgolf.folder import RunFolder
from pgolf.report.card import card

SUMS = "SHA256SUMS"
PULLED = ("model.pgolf", "config.toml", "summary.json")
SHOWN = ("report.html",)
"""Also pushed, for people who look at the repository; not pulled."""


class HubError(PgolfError):
    """A repository that cannot be written or read, in one line."""


def push(folder: RunFolder, repo: str, *, private: bool = False) -> str:
    """The run's files and their card, in one commit; gives the repository's address."""
    summary = folder.read_summary()
    if not summary.artifact or not summary.main_score:
        raise HubError(f"{folder.path} is not scored yet; run: pgolf --resume --out {folder.path}")
    read_container(folder.artifact)
    files: dict[str, Any] = {name: folder.path / name for name in PULLED}
    sums = {name: sha256_of(path) for name, path in files.items()}
    files |= {name: path for name in SHOWN if (path := folder.path / name).exists()}
    files[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    files["README.md"] = card(folder.path.resolve().name, repo, summary, sums["model.pgolf"]).encode()
    with asking(repo) as (hub, module):
        hub.create_repo(repo, private=private, exist_ok=True)
        operations = [module.CommitOperationAdd(name, content) for name, content in files.items()]
        hub.create_commit(repo, operations, commit_message=f"pgolf: {summary.main_score.bpb:.4f} bits per byte")
        return f"{hub.endpoint}/{repo}"


def pull(repo: str, out: Path, revision: str = "") -> RunFolder:
    """A folder with the pulled files, which `show`, `score` and `compress` take; it appears whole or not at all."""
    try:
        with atomic_folder(out) as staging, temporary_folder("pull") as place:

            def get(name: str) -> Path:
                with asking(repo) as (hub, _):
                    return Path(hub.hf_hub_download(repo, name, revision=revision or None, local_dir=place))

            sums = read_sums(get(SUMS), repo)
            for name in PULLED:
                path = get(name)
                if sha256_of(path) != sums[name]:
                    raise HubError(f"{repo}: {name} is not what {SUMS} says; its sha256 differs, so nothing was kept")
                shutil.move(path, staging / name)  # the two folders may be on different disks
            pulled = RunFolder(staging)
            read_container(pulled.artifact)
            read_toml(pulled.config)
            pulled.read_summary()
    except FileExistsError:
        raise HubError(f"{out} holds files already; give another --out") from None
    return RunFolder(out)


def read_sums(path: Path, repo: str) -> dict[str, str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    sums = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M)}
    missing = [name for name in PULLED if name not in sums]
    if missing:
        raise HubError(f"{repo}: {SUMS} says nothing of {', '.join(missing)}; was it made by pgolf push?")
    return sums


@contextlib.contextmanager
def asking(repo: str) -> Iterator[tuple[Any, Any]]:
    """The Hub's interface and its package; what goes wrong there is one line."""
    try:
        import huggingface_hub
    except ImportError:
        raise HubError("the Hub needs huggingface_hub: pip install huggingface_hub") from None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        yield huggingface_hub.HfApi(endpoint=endpoint), huggingface_hub
    except PgolfError:
        raise
    except Exception as error:  # its own, its transport's, or the system's
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "log in with: hf auth login; is the name right?" if status in (401, 403, 404) else "try again"
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise HubError(f"{endpoint} and {repo}: {type(error).__name__}: {reason}; {advice}") from error
