"""A walk through the headers of one tar shard, which may be cut off or damaged."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitrail.data.sources.left_out import TarLeft


class Member(NamedTuple):
    """The place of a file in a shard.

    Attributes:
        offset: of its first byte.
        size: in bytes.
    """

    offset: int
    size: int


class Walk:
    """The members of a tar that are plain files: (sample, suffix, Member), in order.

    Args:
        path: of the shard.
        file: the open shard.
        left: gets the members that are left out.

    Attributes:
        damage: after the last member, a description of the shard's damage, empty for none.
    """

    def __init__(self, path: Path, file: BinaryIO, left: TarLeft):
        self.damage = ""
        self._path, self._file, self._left = path, file, left

    def __iter__(self) -> Iterator[tuple[str, str, Member]]:
        end = os.fstat(self._file.fileno()).st_size
        try:
            tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 (the file is closed)
        except tarfile.TarError as error:
            raise ValueError(
                f"{self._path} is not a tar file ({error}); compressed ones must be unpacked "
                "(gunzip), since samples are read from the middle"
            ) from error
        info = self._next(tar)
        while info is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it grows with every member
            if info.offset_data + info.size > end:
                self.damage = f"is cut off: it has {end:,} bytes"
            folder, slash, last = info.name.rpartition("/")
            sample, dot, suffix = last.partition(".")
            if info.isreg() and not info.issparse() and sample and dot:
                member = Member(info.offset_data, info.size)
                yield folder + slash + sample, suffix.lower(), member
            elif not info.isdir() and not last.startswith("."):
                self._left.add("nameless" if info.isreg() else "special", info.name)
            info = self._next(tar)
        # tarfile ends alike at the end mark, a block of zeros, and at a damaged header
        self._file.seek(tar.offset)
        block = self._file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            self.damage = self.damage or f"is damaged at byte {tar.offset:,}"
        if not block and not self.damage:
            self._left.damage = f"{self._path} has no end mark: it may be cut off"

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            info = tar.next()
        except (tarfile.TarError, ValueError, EOFError, MemoryError) as error:
            self.damage = self.damage or f"is cut off or damaged ({error})"
            return None
        # with a size below zero older versions of tarfile go back and loop for ever
        if info is not None and (info.size < 0 or tar.offset <= info.offset):
            self.damage = self.damage or f"is damaged at byte {info.offset:,}"
            return None
        return info
