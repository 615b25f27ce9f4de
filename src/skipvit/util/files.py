"""Files: replaced as a whole or not at all, locked against other processes, never anything but regular files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from skipvit.util.errors import UsageError


def resolved(path: str | Path) -> Path:
    """The absolute path without links, as far as they lead: a link into itself, for which `Path.resolve` raises, and
    what cannot be a name stay."""
    try:
        return Path(os.path.realpath(expanded(path)))
    except ValueError:
        return Path(os.path.abspath(path))


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` as that user's home; as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def make_folder(path: Path, what: str, option: str) -> None:
    """Raises UsageError if a folder is not there and cannot be made; the line names the option that chooses it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: the {what} cannot be made ({error.strerror}); choose another {option}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that a crash, a full disk or a power cut leaves the old one or the new one.

    Yields:
        A path beside it, of the same ending, to write to: `with replacing(path) as partial: figure.savefig(partial)`.

    Raises:
        OSError: it cannot be written. What had been written is removed, the old file is left as it was.
    """
    partial = path.with_name(f".partial.{path.name}")
    with suppress(OSError):  # a pipe would wait for a reader, a link would be followed
        partial.unlink()
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # which the person knows
        raise
    with suppress(OSError):  # not every file system knows this for folders
        flush(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as `replacing` does. Raises OSError."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def rotate(path: Path, keep: int = 3) -> None:
    """Move a log out of the way of a new one: `worker_0.log` becomes `worker_0.log.1`, that `.2`, up to `keep`."""
    old = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
    if os.path.lexists(path) and not (path.is_file() and path.stat().st_size == 0):
        for younger, older in reversed(list(zip(old, old[1:]))):
            if os.path.lexists(younger):
                younger.replace(older)


def flush(path: Path) -> None:
    """Have a file or folder on the disk, not in a cache that a power cut empties."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: str | bytes | Path, mode: Literal["rb", "ab"] = "rb") -> BinaryIO:
    """Open a file of bytes. A pipe, which would wait, or a device, which may never end, is refused.

    Args:
        mode: `rb`, or `ab` to add to a file, which need not be there.

    Raises:
        OSError: no such file, no permission, or not a regular file.
    """
    flags = os.O_RDONLY if mode == "rb" else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    # Without O_NONBLOCK the opening of a pipe waits for somebody at its other end.
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except ValueError:  # a NUL in it, or what no file system can store
        raise OSError(errno.EINVAL, "not a possible name of a file", os.fspath(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(handle, mode)


def read_bytes(path: str | bytes | Path) -> bytes:
    """The content of a regular file. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | bytes | Path, errors: str = "strict") -> str:
    """The content of a regular text file in UTF-8. Raises OSError as `open_regular`, and UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8", errors)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, behind one that was left unfinished. Raises OSError: it cannot be written, or is not a
    regular file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"
        file.write(("\n" * bool(torn) + line + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | bytes | Path) -> Any:
    """What a side file says; None for one that is missing, is no regular file, or is not JSON."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def lock(path: Path, message: str) -> BinaryIO:
    """Keep a lock for as long as the file that is returned, a context, is open and this process lives.

    Args:
        path: the lock's file; its folder must be there.
        message: what to tell whoever comes second: what is in use, by whom, what to do.

    Raises:
        UsageError: another process has it; or the path is not a regular file.
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    file = os.fdopen(handle, "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise UsageError(f"{path}: not a regular file, as a lock has to be; remove it")
    if not _flock(handle):
        file.close()
        raise UsageError(message)
    return file


def is_locked(path: Path) -> bool:
    """Whether another process has a lock. Nothing is made or changed."""
    try:  # for writing: network file systems lock what may be written
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # no such file
    try:
        return not _flock(handle)
    finally:
        os.close(handle)


def _flock(handle: int) -> bool:
    """Lock a file, unless another process has; whether it did. On a file system without locks everybody gets it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
