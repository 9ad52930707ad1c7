"""What files a folder holds, listed once: a second start on a million files takes seconds.

The listing is kept in the user's cache folder, with the status of every folder that was walked.
Adding, removing or renaming a file changes the status of the folder it is in, so that a listing
whose folders are all as they were is still right. What this cannot see is a file whose content is
replaced in place: its size stays the one that was listed, as does the fingerprint. Remove the cache
(`vitrail.data.sources.cache.cache_folder`) where that matters.

Shape legend: N files · M = N + 1 places where a path begins or all end · F folders.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from vitrail.data.sources.cache import load_arrays, save_arrays

logger = logging.getLogger(__name__)

KEPT_FROM = 5000  # files; fewer are listed as fast as looked up
VERSION = "1"  # of what is kept

# A change within the tick of a file system's clock leaves a folder's time as it is (FAT's is 2
# seconds): of a folder that has just changed, nothing that is listed is known to last.
SETTLED_NS = 2_000_000_000

KIND = "folders"


class Paths:
    """Many paths in little memory: one text, and where each begins. Immutable, cheap to pickle.

    None of it counts references, so that forked worker processes share the memory. Two numbers a
    path (8 bytes here, as many for sizes) beside the text itself.
    """

    def __init__(self, text: np.ndarray, starts: Int64[np.ndarray, " M"]):
        self._text = text
        self._starts = starts

    @classmethod
    def of(cls, paths: Sequence[bytes]) -> "Paths":
        starts = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=starts[1:])
        return cls(np.frombuffer(b"".join(paths), np.uint8), starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.raw(index))

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.raws())

    def raw(self, index: int) -> bytes:
        """The path as the file system has it. IndexError beyond the last; -1 is the last."""
        index = range(len(self))[index]
        return self._text[self._starts[index] : self._starts[index + 1]].tobytes()

    def raws(self) -> Iterator[bytes]:
        """All, in order."""
        text, starts = self._text.tobytes(), self._starts.tolist()
        return (text[a:b] for a, b in pairwise(starts))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of_arrays` makes the same paths of."""
        return {"text": self._text, "starts": self._starts}


class Listing(NamedTuple):
    """Files in the order of their paths' bytes, relative to the root. sizes: bytes, -1 unknown."""

    paths: Paths
    sizes: Int64[np.ndarray, " N"]


@dataclass
class _Walk:
    """What a walk has found. status: of each folder, (device, inode, changed, modified) in ns."""

    paths: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    status: list[tuple[int, int, int, int]] = field(default_factory=list)
    lasting: bool = True  # false with links to nowhere, whose target may come to be a folder


def list_files(root: Path, inside: str, suffixes: Sequence[str]) -> Listing:
    """All files under root/inside whose names end so, in whatever case.

    Hidden files and folders are skipped. Links to folders are followed; a folder that is reached
    twice is read once, at the first place in order, so that loops end.

    Raises:
        ValueError: a folder cannot be listed.
    """
    key = "\0".join((VERSION, str(root.absolute()), inside, *suffixes))
    kept = _load(root, key)
    if kept is not None:
        return kept
    begin = time.time_ns()
    walk = _walk(root, inside, tuple(map(os.fsencode, suffixes)))
    order = sorted(range(len(walk.paths)), key=walk.paths.__getitem__)
    listing = Listing(
        Paths.of([walk.paths[i] for i in order]),
        np.array(walk.sizes, np.int64)[order],
    )
    status_F4 = np.array(walk.status, np.uint64)
    settled = int(status_F4[:, 2:].max()) + SETTLED_NS < begin
    if len(order) >= KEPT_FROM and walk.lasting and settled:
        folders = {f"folder_{k}": v for k, v in Paths.of(walk.folders).arrays().items()}
        arrays = {**listing.paths.arrays(), "sizes": listing.sizes, **folders, "status": status_F4}
        save_arrays(KIND, key, arrays)
    return listing


def _walk(root: Path, inside: str, suffixes: tuple[bytes, ...]) -> _Walk:
    found, seen = _Walk(), set()
    waiting = [os.fsencode(inside)]
    while waiting:
        folder = waiting.pop()
        try:
            status = _status(root, folder)
            if status[:2] in seen:
                continue
            entries = sorted(os.scandir(_join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"{root / os.fsdecode(folder)} cannot be listed ({error.strerror}); make it "
                "readable or move it away"
            ) from error
        seen.add(status[:2])
        found.folders.append(folder)
        found.status.append(status)
        below = _sort_out(entries, folder + b"/" if folder else b"", suffixes, found)
        waiting += reversed(below)  # the first is walked next
    return found


def _sort_out(
    entries: Iterable["os.DirEntry[bytes]"],
    prefix: bytes,
    suffixes: tuple[bytes, ...],
    found: _Walk,
) -> list[bytes]:
    """Adds the files among them to what was found; returns the folders."""
    folders = []
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            continue
        if _is_folder(entry):
            folders.append(prefix + name)
        elif name.lower().endswith(suffixes):
            found.paths.append(prefix + name)
            found.sizes.append(_size(entry))
            found.lasting &= found.sizes[-1] >= 0
        elif entry.is_symlink():
            found.lasting &= os.path.exists(entry.path)
    return folders


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: "os.DirEntry[bytes]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _join(root: Path, folder: bytes) -> bytes:
    return os.path.join(os.fsencode(root), folder)


def _status(root: Path, folder: bytes) -> tuple[int, int, int, int]:
    """Modified alone would not do: a folder that is copied over another may bring its time."""
    status = os.stat(_join(root, folder))
    # Unsigned, as inodes are; a time before 1970 is told from others all the same.
    times = (status.st_ctime_ns % 2**64, status.st_mtime_ns % 2**64)
    return (status.st_dev % 2**64, status.st_ino % 2**64, *times)


def _load(root: Path, key: str) -> Listing | None:
    """What is kept, if it is whole and every folder is as it was."""
    arrays = load_arrays(KIND, key)
    if arrays is None:
        return None
    try:
        paths = _paths(arrays["text"], arrays["starts"])
        folders = _paths(arrays["folder_text"], arrays["folder_starts"])
        sizes_N, status_F4 = arrays["sizes"], arrays["status"]
        if sizes_N.shape != (len(paths),) or sizes_N.dtype != np.int64:
            raise ValueError("sizes")
        if status_F4.shape != (len(folders), 4) or status_F4.dtype != np.uint64:
            raise ValueError("status")
    except (KeyError, ValueError) as error:
        logger.info("a kept listing of %s is damaged and made again (%s)", root, error)
        return None
    try:
        same = all(
            _status(root, folder) == tuple(status)
            for folder, status in zip(folders.raws(), status_F4.tolist(), strict=True)
        )
    except OSError:  # a folder is gone
        return None
    return Listing(paths, sizes_N) if same else None


def _paths(text: np.ndarray, starts: np.ndarray) -> Paths:
    """Checked, as a file may hold anything."""
    sound = text.ndim == starts.ndim == 1 and text.dtype == np.uint8 and starts.dtype == np.int64
    if not sound or len(starts) < 1 or starts[0] != 0 or starts[-1] != len(text):
        raise ValueError("paths")
    if (np.diff(starts) < 0).any():
        raise ValueError("paths")
    return Paths(text, starts)
