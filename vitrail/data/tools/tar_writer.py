"""Tar shards: their bytes depend only on what is in them, and they appear only when whole."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.atomic import sync, sync_path


class TarWriter:
    """One shard after the other, each under a temporary name until it is on the disk."""

    def __init__(self) -> None:
        self.path = Path()  # of the shard, once it is whole
        self.samples = 0
        self._tar: tarfile.TarFile | None = None

    @classmethod
    @contextmanager
    def none(cls) -> Iterator["TarWriter"]:
        """A writer that holds no shard yet; one that is not closed at the end is removed."""
        writer = cls()
        try:
            yield writer
        finally:
            if writer._tar is not None:
                with suppress(OSError):  # of a full disk, which needs the room
                    writer._file.close()
                writer._temporary.unlink(missing_ok=True)

    @property
    def is_open(self) -> bool:
        return self._tar is not None

    @property
    def size(self) -> int:
        """Bytes written to the open shard so far."""
        return 0 if self._tar is None else self._file.tell()

    def size_with(self, members: dict[str, bytes]) -> int:
        """The size of the shard if these were added and it were closed."""
        blocks = sum(1 + -(-len(data) // tarfile.BLOCKSIZE) for data in members.values())
        whole = self.size + (blocks + 2) * tarfile.BLOCKSIZE
        return -(-whole // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def open(self, path: Path) -> None:
        assert self._tar is None
        self.path, self.samples = path, 0
        self._temporary = path.with_name(f".{path.name}.writing")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by `close`)
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT
        )

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """One sample: its files by suffix."""
        assert self._tar is not None
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")  # mtime 0, uid 0, gid 0, mode 0644
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
            self._tar.members = []  # type: ignore[attr-defined]  # else every one is kept
        self.samples += 1

    def close(self) -> int:
        """Puts the shard in its place, and returns its bytes."""
        assert self._tar is not None
        self._tar.close()
        size = self._file.tell()
        sync(self._file)
        self._file.close()
        self._tar = None
        os.replace(self._temporary, self.path)
        sync_path(self.path.parent)
        return size
