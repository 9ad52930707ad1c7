"""Tar shards: their bytes depend only on their content, and they appear only when complete."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.atomic import replacing


class TarWriter:
    """Writes one shard after the other, each under a temporary name until it is on the disk.

    Attributes:
        path: of the shard, once it is complete.
        samples: number of samples in the shard so far.
    """

    def __init__(self) -> None:
        self.path = Path()
        self.samples = 0
        self._tar: tarfile.TarFile | None = None

    @classmethod
    @contextmanager
    def none(cls) -> Iterator["TarWriter"]:
        """Gives a writer without a shard; a shard that is not closed at the end is removed."""
        writer = cls()
        try:
            yield writer
        finally:
            writer._discard()

    @property
    def is_open(self) -> bool:
        """True from `open` to `close`."""
        return self._tar is not None

    @property
    def size(self) -> int:
        """Bytes written to the open shard so far."""
        return 0 if self._tar is None else self._file.tell()

    def size_with(self, members: dict[str, bytes]) -> int:
        """Returns the size of the shard if these were added and it were closed."""
        blocks = sum(1 + -(-len(data) // tarfile.BLOCKSIZE) for data in members.values())
        whole = self.size + (blocks + 2) * tarfile.BLOCKSIZE
        return -(-whole // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def open(self, path: Path) -> None:
        """Begins a shard."""
        assert self._tar is None
        self.path, self.samples = path, 0
        self._replacing = replacing(path)
        self._file = open(self._replacing.__enter__(), "wb")  # noqa: SIM115 (closed by `close`)
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT
        )

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Adds one sample: its files by suffix."""
        assert self._tar is not None
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")  # mtime 0, uid 0, gid 0, mode 0644
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
            self._tar.members = []  # type: ignore[attr-defined]  # else the list of all grows
        self.samples += 1

    def close(self) -> int:
        """Puts the shard in its place, and returns its bytes."""
        assert self._tar is not None
        self._tar.close()
        size = self._file.tell()
        self._file.close()
        self._tar = None
        self._replacing.__exit__(None, None, None)
        return size

    def _discard(self) -> None:
        if self._tar is None:
            return
        self._tar = None
        with suppress(OSError):  # of a full disk
            self._file.close()
        abandoned = OSError("the shard is not complete")
        self._replacing.__exit__(OSError, abandoned, None)
