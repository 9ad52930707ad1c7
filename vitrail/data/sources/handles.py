"""Large files that are read here and there: each is opened when it is first needed."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

OPEN_FILES = 32  # of a process; two windows of blocks are 16 (sampling.WINDOW)


class Handles:
    """Open files, the least recently used closed first.

    Safe to share with forked processes and threads: reads name their position, so that nothing is
    shared but the file. Spawned processes get an empty one.
    """

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=OPEN_FILES)(_OpenFile)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """That many bytes from there on, or fewer where the file ends. OSError as `os.open`."""
        file = self._open(path)
        parts = []
        while size > 0:
            part = os.pread(file.descriptor, size, offset)  # at most 2 GB at a time
            if not part:
                break
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class _OpenFile:
    """Closed when nobody holds it any more: not while another thread still reads it."""

    def __init__(self, path: Path):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
