"""The files of a folder, listed once: a second start on a million files takes seconds.

The listing is saved in the user's cache folder, with the status of every folder that was walked.
Adding, removing or renaming a file changes the status of its folder, so a listing is valid as long
as the status of every folder is the same. A file whose content is replaced in place goes unnoticed:
its listed size stays, as does the fingerprint. If that matters, remove the cache
(`vitrail.data.sources.cache.cache_folder`).

What is not listed is counted (`Left`), and folders that vitrail itself has written are not walked.

Shape legend: N files · M = N + 1 starts of paths, the last the end of all · F folders.
"""

import json
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

from vitrail.atomic import parse_json
from vitrail.data.sources.cache import load_arrays, save_arrays
from vitrail.data.sources.left_out import OUTPUTS, Left, is_output

logger = logging.getLogger(__name__)

KEPT_FROM = 5000  # files; listing fewer is as fast as reading the cache
VERSION = "2"  # of the cached arrays

# A change within the tick of a file system's clock leaves a folder's time as it is (FAT's is 2
# seconds), so the listing of a folder that has just changed is not saved.
SETTLED_NS = 2_000_000_000

KIND = "folders"


class Paths(Sequence[str]):
    """Many paths in little memory: one text, and the start of each. Immutable, cheap to pickle.

    It has no counted references to each path, so forked worker processes share the memory. Each
    path takes 8 bytes beside the text itself.

    Args:
        text: uint8, all paths one after another.
        starts: int64 [M].
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

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return os.fsdecode(self.raw(index))

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.raws())

    def raw(self, index: int) -> bytes:
        """Returns a path as the file system has it. IndexError beyond the last; -1 is the last."""
        index = range(len(self))[index]
        return self._text[self._starts[index] : self._starts[index + 1]].tobytes()

    def raws(self) -> Iterator[bytes]:
        """Yields all paths in order, as the file system has them."""
        text, starts = self._text.tobytes(), self._starts.tolist()
        return (text[a:b] for a, b in pairwise(starts))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that make up the paths, to be saved."""
        return {"text": self._text, "starts": self._starts}


class Listing(NamedTuple):
    """Files in the order of their paths' bytes.

    Attributes:
        paths: relative to the root.
        sizes: int64 [N], in bytes, -1 for an unknown size.
        left: what is not listed.
    """

    paths: Paths
    sizes: Int64[np.ndarray, " N"]
    left: Left


@dataclass
class _Walk:
    """The files and folders that a walk has found.

    Attributes:
        paths: of the files.
        sizes: of the files.
        folders: paths of the folders.
        status: of each folder, (device, inode, changed, modified), times in ns.
        left: what is not listed.
        lasting: false with links to nowhere, whose target may become a folder.
    """

    paths: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    status: list[tuple[int, int, int, int]] = field(default_factory=list)
    left: Left = field(default_factory=Left)
    lasting: bool = True


def list_files(root: Path, inside: str, suffixes: Sequence[str]) -> Listing:
    """Returns all files under root/inside with one of these suffixes, in any case.

    Hidden files and folders are skipped, and folders of vitrail's own (`is_output`). Links to
    folders are followed; a folder that is reached twice is read once, at the first place in order,
    so loops end.

    Args:
        root: folder that paths are relative to.
        inside: subfolder to list, "" for the root itself.
        suffixes: in lower case, with the dot.

    Raises:
        ValueError: a folder cannot be listed.
    """
    key = "\0".join((VERSION, str(root.absolute()), inside, *suffixes))
    cached = _load(root, key)
    if cached is not None:
        return cached
    begin = time.time_ns()
    walk = _walk(root, inside, tuple(map(os.fsencode, suffixes)))
    order = sorted(range(len(walk.paths)), key=walk.paths.__getitem__)
    listing = Listing(
        Paths.of([walk.paths[i] for i in order]),
        np.array(walk.sizes, np.int64)[order],
        walk.left,
    )
    status_F4 = np.array(walk.status, np.uint64)
    settled = int(status_F4[:, 2:].max()) + SETTLED_NS < begin
    if len(order) >= KEPT_FROM and walk.lasting and settled:
        folders = {f"folder_{k}": v for k, v in Paths.of(walk.folders).arrays().items()}
        left = np.frombuffer(json.dumps(vars(walk.left)).encode(), np.uint8)
        arrays = {**listing.paths.arrays(), "sizes": listing.sizes, **folders}
        arrays |= {"status": status_F4, "left": left}
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
                found.left.again.append(os.fsdecode(folder))
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
        is_top = len(found.folders) == 1
        if is_output({entry.name for entry in entries}):
            if not is_top:
                found.left.outputs.append(os.fsdecode(folder))
                continue
            # the run's folder is the data's folder: the images beside it are data
            found.left.outputs += [os.fsdecode(e.name) for e in entries if e.name in OUTPUTS]
            entries = [entry for entry in entries if entry.name not in OUTPUTS]
        below = _add_files(entries, folder + b"/" if folder else b"", suffixes, found)
        waiting += reversed(below)  # the first is walked next
    return found


def _add_files(
    entries: Iterable["os.DirEntry[bytes]"],
    prefix: bytes,
    suffixes: tuple[bytes, ...],
    found: _Walk,
) -> list[bytes]:
    """Adds the files among the entries to those found; returns the folders."""
    folders = []
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            found.left.hidden += 1
            continue
        if is_folder(entry):
            folders.append(prefix + name)
        elif name.lower().endswith(suffixes):
            found.paths.append(prefix + name)
            found.sizes.append(_size(entry))
            found.lasting &= found.sizes[-1] >= 0
        else:
            found.left.add_file(prefix + name)
            found.lasting &= not entry.is_symlink() or os.path.exists(entry.path)
    return folders


def is_folder(entry: "os.DirEntry[str] | os.DirEntry[bytes]") -> bool:
    """Returns True for a folder, or a link to one, without an error for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _size(entry: "os.DirEntry[bytes]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _join(root: Path, folder: bytes) -> bytes:
    return os.path.join(os.fsencode(root), folder)


def _status(root: Path, folder: bytes) -> tuple[int, int, int, int]:
    """Returns device, inode and times; a folder copied over another may bring its modified time."""
    status = os.stat(_join(root, folder))
    # unsigned, as inodes are; a time before 1970 stays distinct
    times = (status.st_ctime_ns % 2**64, status.st_mtime_ns % 2**64)
    return (status.st_dev % 2**64, status.st_ino % 2**64, *times)


def _load(root: Path, key: str) -> Listing | None:
    """Returns the cached listing, if it is whole and no folder has changed."""
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
        left = Left(**parse_json(arrays["left"].tobytes()))
    except (KeyError, ValueError, TypeError) as error:
        logger.info("a cached listing of %s is damaged and made again (%s)", root, error)
        return None
    try:
        same = all(
            _status(root, folder) == tuple(status)
            for folder, status in zip(folders.raws(), status_F4.tolist(), strict=True)
        )
    except OSError:  # a folder is gone
        return None
    return Listing(paths, sizes_N, left) if same else None


def _paths(text: np.ndarray, starts: np.ndarray) -> Paths:
    """Returns paths of cached arrays. ValueError if they are not such arrays."""
    sound = text.ndim == starts.ndim == 1 and text.dtype == np.uint8 and starts.dtype == np.int64
    if not sound or len(starts) < 1 or starts[0] != 0 or starts[-1] != len(text):
        raise ValueError("paths")
    if (np.diff(starts) < 0).any():
        raise ValueError("paths")
    return Paths(text, starts)
