"""Files written whole, read within bounds, and locked.

A temporary file is flushed to the disk and renamed, so no crash leaves a part of one.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Bytes of a file of settings, results or rows: above it is something else, such as a device.
MAX_TEXT = 2**30

_temporaries: set[Path] = set()  # being written now


def sync(file: Any) -> None:
    """Flushes an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Flushes a closed file to the disk, or the entries of a folder (after a rename in it)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path whose file replaces `path` at the end.

    Readers see the old file or the new one, never a part. After an exception the old one stays.

    Args:
        path: the file to replace.
        shared: other processes may write the same file at once; the last one stays.
    """
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.writing")
    _temporaries.add(temporary)
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:  # a full disk needs the space
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _temporaries.discard(temporary)
    sync_path(path.parent)


def remove_temporaries() -> None:
    """Removes the temporary files that are being written, before the process ends by force."""
    for path in list(_temporaries):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Replaces the content of a file atomically, as `replacing` does; text is encoded as UTF-8."""
    with replacing(path, shared) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def parse_json(text: str | bytes | bytearray) -> Any:
    """Parses JSON. Raises ValueError for anything else, also for text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_text(path: Path) -> str:
    """Reads a text file of at most MAX_TEXT bytes; bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: it is a folder, pipe or device, which may never end, or larger than that.
        OSError: it is not there, or cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a file (a folder, pipe or device); put a file there")
    if status.st_size > MAX_TEXT:
        raise ValueError(
            f"{path} has {status.st_size:,} bytes, more than the {MAX_TEXT:,} of any such file; "
            "restore it"
        )
    return path.read_bytes().decode("utf-8", errors="replace")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Locks a file, and yields whether that was possible: False if another process holds the lock.

    The system releases it however the process ends, and processes that it starts do not inherit it.
    The file holds the number of the process, for messages, and stays.

    Args:
        path: the file; made if missing.
    """
    from filelock import FileLock, Timeout  # lazy import: few commands lock anything

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        path.write_text(str(os.getpid()))
        yield True
    finally:
        lock.release()
