"""Writing files so that a reader never sees half of one, and reading them back. No torch here."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from odn.errors import OdnError

_MAX_JSON_BYTES = 64 * 1024**2


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place.

    Args:
        path: the file; its folder is made if absent. What was there stands until the new content is complete.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OdnError: when the disk is full or the place cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OdnError(explain(error, path, len(data))) from error


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a directory under a temporary name and rename it into place when it is complete.

    Args:
        path: the directory; one that stands there is replaced.

    Yields:
        The temporary directory to write into; it is removed when an error occurs.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    try:
        yield partial
        # Two renames: what stood there is out of the way for a moment only, and never half removed.
        old = path.with_name(f".{path.name}.old")
        remove(old)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        remove(old)
    except BaseException:
        remove(partial)
        raise


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory while this one works on it; the same process may enter again.

    Args:
        directory: one that stands there. The lock ends with the process, however that ends.

    Yields:
        Nothing.

    Raises:
        OdnError: when another process is in it, or the place cannot be written.
    """
    import filelock

    lock = filelock.FileLock(directory / ".lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise OdnError(
            f"{directory} is in use by another process; wait for it, or choose another with --run"
        ) from error
    except OSError as error:
        raise OdnError(explain(error, directory)) from error
    try:
        yield
    finally:
        lock.release()


def stay_inside(path: Path) -> None:
    """Refuse a file of an artifact or a run that is a link to somewhere else.

    Args:
        path: the file, directly in its directory.

    Raises:
        OdnError: when it leads out of that directory.
    """
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise OdnError(f"{path} is a link out of its directory; put the file itself there")


def explain(error: OSError, path: Path, needed_bytes: int = 0) -> str:
    """Say in one line what went wrong with a file and what to do about it.

    Args:
        error: as raised by the operating system.
        path: the file or folder concerned.
        needed_bytes: size of what was to be written, where known.

    Returns:
        One line for the user.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f" {needed_bytes:,} bytes are needed" if needed_bytes else ""
        return f"the disk is full at {path}:{needed}; free some space, then continue with --resume"
    return f"cannot write {path}: {error.strerror or error}; choose another folder with --run"


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there.

    Args:
        path: the file or folder.

    Raises:
        OdnError: when it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OdnError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error


def read_bytes(path: Path, mend: str = "copy or export the artifact again") -> bytes:
    """Read a file of an artifact.

    Args:
        path: the file.
        mend: what helps when it is missing.

    Returns:
        Its bytes.

    Raises:
        OdnError: when it is missing, unreadable, or a link to somewhere else.
    """
    stay_inside(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise OdnError(f"{path} is missing; {mend}") from error
    except OSError as error:
        raise OdnError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path, mend: str = "copy or export the artifact again") -> str:
    """Read a small text file of an artifact.

    Args:
        path: the file.
        mend: what helps when it is missing or no text.

    Returns:
        Its text.

    Raises:
        OdnError: when it is missing, unreadable, not UTF-8, or larger than any such file.
    """
    if path.is_file() and path.stat().st_size > _MAX_JSON_BYTES:
        raise OdnError(f"{path} has {path.stat().st_size:,} bytes; allowed: up to {_MAX_JSON_BYTES:,}")
    try:
        return read_bytes(path, mend).decode()
    except UnicodeDecodeError as error:
        raise OdnError(f"{path} is not UTF-8 text; {mend}") from error


def files_below(folder: Path) -> Iterator[Path]:
    """Walk a folder to the bottom, in the order in which paths are sorted.

    Args:
        folder: to be searched; folders that links lead to are not.

    Yields:
        Its files, but for hidden ones and those in hidden folders.

    Raises:
        OdnError: when a folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise OdnError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(folder / entry.name)
        elif entry.is_file():
            yield folder / entry.name
