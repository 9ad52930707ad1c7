"""Files that survive a kill or a power cut: written beside, flushed to the disk, renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(file: Any) -> None:
    """Flushes an open file through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Makes a closed file durable, or a folder's entries (a rename within it)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path to write a file to, which then replaces `path`: readers see the old one or the new
    one, never a part. What fails within leaves the old one. shared: other processes may write the
    same file at once; the last one stays."""
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.writing")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:  # a full disk needs the room
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_atomically(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Replaces a file: readers see the old one or the new one, never a part. Text is UTF-8."""
    with replacing(path, shared) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
