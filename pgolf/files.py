"""Files that appear whole under their final name or not at all."""

import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pgolf.errors import PgolfError

CHUNK_BYTES = 1 << 24


class FileError(PgolfError):
    """The operating system's refusal, in one line."""


ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "make room, or choose another place",
    errno.ENOENT: "check the name",
    errno.EACCES: "check permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.EISDIR: "give a file; the artifact of a run is model.pgolf in its folder",
}


def system_error(doing: str, path: str | Path, error: OSError) -> FileError:
    """What could not be done, why, and what to try."""
    reason = error.strerror or str(error)
    return FileError(f"cannot {doing} {path}: {reason}; {ADVICE.get(error.errno, 'try again, or choose another place')}")


# what takes long to make and can be made again
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pgolf"
# temporary names say which process they belong to: .NAME.HOST-PID.RANDOM.partial
HOST = re.sub(r"\W", "_", platform.node())
PARTIAL = re.compile(rf"\..+\.{HOST}-(\d+)\.[^.]+\.partial")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write into; it takes its name only when the block ends well and the bytes are on disk."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=owned(path.name), suffix=".partial", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise system_error("write", path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """An empty staging folder beside `folder`, renamed to it when the block ends well, removed when it does not.

    Two processes may build the same folder: the one that comes second finds the name taken, gets FileExistsError
    and its own copy is removed.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        staging = Path(tempfile.mkdtemp(prefix=owned(folder.name), suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise system_error("write", folder, error) from error
    try:
        yield staging
        os.chmod(staging, 0o777 & ~umask())
        # a rename onto a folder succeeds only if that folder is empty
        os.rename(staging, folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(f"{folder} already holds files") from error
        raise system_error("write", folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder among the system's temporary ones for as long as the block lasts; those of killed processes go first."""
    place = Path(tempfile.gettempdir())
    sweep(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=owned(f"pgolf-{purpose}"), suffix=".partial", dir=place))
    except OSError as error:
        raise system_error("write", place, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def owned(name: str) -> str:
    """How a temporary name of this process begins."""
    return f".{name}.{HOST}-{os.getpid()}."


def sweep(place: Path) -> None:
    """Remove what killed processes have left behind under temporary names."""
    try:
        names = os.listdir(place)
    except OSError:
        return
    for name in names:
        match = PARTIAL.fullmatch(name)
        if match and not is_running(int(match[1])):
            path = place / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


# a folder that many files are written into need not be listed for each of them
sweep_once = functools.cache(sweep)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # owned by another user
        return True
    return True


def umask() -> int:
    """What the user takes from the permissions of new files. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sha256_of(path: str | Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise system_error("read", path, error) from error
    return digest.hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """The file appears complete under its name, or not at all."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
