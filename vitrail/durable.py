"""Files that survive a kill or a power cut: written beside, flushed to the disk, renamed."""

import os
from pathlib import Path
from typing import Any


def sync(file: Any) -> None:
    """Flushes an open file through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries (a rename within it) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file: readers see the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            sync(file)
        os.replace(temporary, path)
    except OSError:  # a full disk needs the room
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
