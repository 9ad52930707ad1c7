"""Atomic writes: a temporary file is flushed to the disk and renamed, so no crash leaves a part."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:  # a full disk needs the space
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_atomically(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Replaces the content of a file atomically, as `replacing` does; text is encoded as UTF-8."""
    with replacing(path, shared) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
