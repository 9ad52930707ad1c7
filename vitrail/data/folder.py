"""A folder of images, flat or nested, labelled or not."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vitrail.data.batch import NoTestSplitError, Sample, Source
from vitrail.data.decode import decode_file
from vitrail.data.detail import Detail

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = {"train": ("train",), "test": ("test", "val")}  # subfolders, the first that exists


class FolderSource(Source):
    """Image files by path. An id is the path relative to the folder, with forward slashes.

    Labels: the first-level subfolders of the split, if every image is in one and there are two or
    more. Hidden files and folders are skipped. Links to folders are followed; a folder that is
    reached twice is read once, at the first place in order, so that loops end.
    """

    def __init__(
        self,
        spec: str,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | None,
        classes: Sequence[str] | None,
        channels: int,
    ):
        self.spec = spec
        self.channels = channels
        self.classes = classes
        self._root = root
        self._paths = tuple(paths)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        path = self._root / self._paths[index]
        image = decode_file(path, self.channels, self.id(index))
        return Sample(image, self.label(index), None, self.id(index))

    def id(self, index: int) -> str:
        return self._paths[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else self._labels[index]

    def fingerprint(self) -> str:
        """Of paths and file sizes; times do not count, so that a copied folder is the same one."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self._paths:
            try:
                size = (self._root / path).stat().st_size
            except OSError:
                size = -1
            digest.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\0")
        return digest.hexdigest()


def open_folder(rest: str, split: Literal["train", "test"], channels: int | None) -> Source:
    """`folder:DIR`. If DIR has `train` and `test` (or `val`), these are the splits.

    Raises:
        ValueError: no such folder, not a folder, no images in it, no test split, a test class that
            training lacks, or channels other than 1 and 3.
    """
    spec = f"folder:{rest}"
    if channels not in (None, 1, 3):
        raise ValueError(f"{spec}: channels is {channels}; image files give 1 (grey) or 3 (RGB)")
    root = Path(rest).expanduser()
    _check_folder(spec, rest, root)
    subfolders = _split_folders(root)
    if not subfolders and split == "test":
        raise NoTestSplitError(
            f"{spec} has no test split: it lacks the subfolders 'train' and 'test' (or 'val'); "
            "add them, or hold samples out with vitrail.data.memory.hold_out"
        )
    inside = subfolders.get(split, "")
    paths = list_images(root, inside)
    if not paths:
        raise ValueError(
            f"{spec}: no images in {root / inside}; files must end in {', '.join(SUFFIXES)}"
        )
    names = _first_level(paths, inside)
    train_names = names
    if split == "test":  # its classes are those of training, under the same numbers
        train_names = _first_level(list_images(root, subfolders["train"]), subfolders["train"])
    classes = sorted(set(train_names or ()), key=os.fsencode)
    if names is None or len(classes) < 2:
        return FolderSource(spec, root, paths, None, None, channels or 3)
    if unknown := set(names) - set(classes):
        raise ValueError(
            f"{spec}: {inside!r} holds the class {min(unknown)!r}, which 'train' lacks; "
            "both need the same subfolders"
        )
    number = {name: i for i, name in enumerate(classes)}
    return FolderSource(spec, root, paths, [number[n] for n in names], classes, channels or 3)


def _check_folder(spec: str, rest: str, root: Path) -> None:
    if not rest:
        raise ValueError("folder: names no folder; write folder:DIR")
    if not root.exists():
        raise ValueError(f"{spec}: there is no folder {root}; check the path after 'folder:'")
    if not root.is_dir():
        raise ValueError(f"{spec}: {root} is a file; give the folder it is in")


def _split_folders(root: Path) -> dict[str, str]:
    """The subfolder of each split, empty unless there is one for both."""
    found = {
        split: next((name for name in names if (root / name).is_dir()), None)
        for split, names in SPLITS.items()
    }
    return {k: v for k, v in found.items() if v is not None} if all(found.values()) else {}


def _first_level(paths: Sequence[str], inside: str) -> list[str] | None:
    """The first-level subfolder of each image, None if one image is in no subfolder."""
    parts = [(path[len(inside) + 1 :] if inside else path).split("/") for path in paths]
    return [part[0] for part in parts] if all(len(part) > 1 for part in parts) else None


def list_images(root: Path, inside: str = "") -> list[str]:
    """Paths of all image files under root/inside, relative to root, sorted by their bytes."""
    return sorted(_walk(root, inside, set()), key=os.fsencode)


def _walk(root: Path, inside: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    folder = root / inside
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be listed ({error.strerror}); make it readable or move it away"
        ) from error
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir():
            yield from _walk(root, path, seen)
        elif entry.name.lower().endswith(SUFFIXES):
            yield path
