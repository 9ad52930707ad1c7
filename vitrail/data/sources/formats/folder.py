"""A folder of images, flat or nested, labelled or not."""

import bisect
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from vitrail.data.contract import Detail, NoTestSplitError, Sample, Source
from vitrail.data.decode.arrays import (
    NPY_SUFFIX,
    check_readers,
    decode_array_file,
    needs_arrays,
)
from vitrail.data.decode.image import SUFFIXES, decode_file
from vitrail.data.decode.pixels import Bits
from vitrail.data.sources.formats.folder_labels import LabelTable, read_labels
from vitrail.data.sources.formats.listing import Listing, Paths, list_files
from vitrail.data.sources.spec import split_options

logger = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "test": ("test", "val")}  # subfolders, the first that exists
OPTIONS = ("bits", "labels")

# What can hold channels other than grey and RGB; the last with alpha, as 2 or 4.
ANY_CHANNELS = (NPY_SUFFIX, ".tif", ".tiff")
WITH_ALPHA = (*ANY_CHANNELS, ".png")


class Labels(NamedTuple):
    """numbers: of each image, -1 for none. given: by a table, not by the images' own paths."""

    numbers: Int32[np.ndarray, " N"]
    classes: Sequence[str]
    given: bool


class FolderSource(Source):
    """Image files by path. An id is the path relative to the folder, with forward slashes."""

    def __init__(
        self,
        spec: str,
        root: Path,
        listing: Listing,
        labels: Labels | None,
        channels: int,
        bits: Bits,
    ):
        self.spec = spec
        self.channels = channels
        self.bits = bits
        self.classes = None if labels is None else labels.classes
        self._root = root
        self._paths, self._sizes = listing
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id = self.id(index)
        path = self._root / id
        if needs_arrays(id, self.channels, self.bits):
            image = decode_array_file(path, self.channels, self.bits, id)
        else:
            image = decode_file(path, self.channels, id, detail)
        return Sample(image, self.label(index), None, id)

    def id(self, index: int) -> str:
        return self._paths[index]

    def label(self, index: int) -> int | None:
        number = -1 if self._labels is None else int(self._labels.numbers[index])
        return None if number < 0 else number

    def fingerprint(self) -> str:
        """Of paths, file sizes when they were listed (`manifest`), and labels of a table.

        Times do not count, so that a copied folder is the same one.
        """
        digest = hashlib.blake2b(digest_size=16)
        for path, size in zip(self._paths.raws(), self._sizes.tolist(), strict=True):
            digest.update(b"%b\0%d\0" % (path, size))
        if self._labels is not None and self._labels.given:
            digest.update(repr(list(self._labels.classes)).encode())
            digest.update(self._labels.numbers.tobytes())
        return digest.hexdigest()


def open_folder(
    rest: str,
    split: Literal["train", "test"],
    channels: int | None,
    splits: Mapping[str, Sequence[str]] = SPLITS,
) -> Source:
    """`folder:DIR[,labels=FILE][,bits=16]`.

    Hidden files and folders are skipped; links to folders are followed (`manifest.list_files`).
    Files are those of SUFFIXES, or, where there are none, `.npy` arrays.

    Splits: those of FILE's column; else DIR's subfolders `train` and `test` (or `val`), if there
    are both; `splits` may name others. Labels: those of FILE, relative to DIR, which may lack some
    of the images (`folder_labels`); without it the first-level subfolders of the split, if every
    image is in one and there are two or more. bits: 16 reads 16-bit images as such.

    Raises:
        ValueError: no such folder, not a folder, no images in it, a test class that training
            lacks, channels that none of its files can have, or a FILE that cannot be used.
        NoTestSplitError: "test" without one.
    """
    spec = f"folder:{rest}"
    place, options = _options(rest)
    bits = _bits(spec, options.get("bits", "8"))
    root = Path(place).expanduser()
    _check_folder(spec, place, root)
    try:
        table = read_labels(root, options["labels"]) if "labels" in options else None
        inside = _inside(root, split, table, splits)
        listing = _list(root, inside)
        if not len(listing.paths):
            raise ValueError(
                f"no images in {root / inside}; files must end in {', '.join(SUFFIXES)}"
            )
        if table is None:
            labels = _labels_of_subfolders(root, inside, split, listing.paths)
        else:
            listing, labels = _labels_of_table(table, inside, split, listing)
        _check_channels(listing.paths, channels or 3, bits)
    except NoTestSplitError as error:
        raise NoTestSplitError(f"{spec} {error}") from error
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    return FolderSource(spec, root, listing, labels, channels or 3, bits)


def _options(rest: str) -> tuple[str, dict[str, str]]:
    """A folder that is called like an option is still a folder."""
    if Path(rest).expanduser().is_dir():
        return rest, {}
    return split_options("folder", rest, OPTIONS)


def _bits(spec: str, value: str) -> Bits:
    if value not in ("8", "16"):
        raise ValueError(f"{spec}: bits is {value!r}; it must be 8 or 16")
    return 16 if value == "16" else 8


def _check_folder(spec: str, rest: str, root: Path) -> None:
    if not rest:
        raise ValueError("folder: names no folder; write folder:DIR")
    if not root.exists():
        raise ValueError(f"{spec}: there is no folder {root}; check the path after 'folder:'")
    if not root.is_dir():
        raise ValueError(f"{spec}: {root} is a file; give the folder it is in")


def _inside(
    root: Path, split: str, table: LabelTable | None, splits: Mapping[str, Sequence[str]]
) -> str:
    """The subfolder of a split, "" where the folder is not split by subfolders."""
    if table is not None and table.splits is not None:
        return ""
    found = {
        split: next((name for name in names if (root / name).is_dir()), None)
        for split, names in splits.items()
    }
    if all(found.values()):
        return found[split] or ""
    if split == "test":
        column = "" if table is None else ", and its table of labels a column 'split'"
        raise NoTestSplitError(
            "has no test split: it lacks the subfolders 'train' and 'test' (or 'val')"
            f"{column}; add them, or hold samples out with vitrail.data.subset.hold_out"
        )
    return ""


def _list(root: Path, inside: str) -> Listing:
    listing = list_files(root, inside, SUFFIXES)
    return listing if len(listing.paths) else list_files(root, inside, (NPY_SUFFIX,))


def _labels_of_table(
    table: LabelTable, inside: str, split: str, listing: Listing
) -> tuple[Listing, Labels]:
    try:
        chosen = table.choose(listing.paths, inside, split)
    except NoTestSplitError:
        raise
    except ValueError as error:
        raise ValueError(f"{table.name}: {error}") from error
    if chosen.positions is not None:
        paths = Paths.of([listing.paths.raw(i) for i in chosen.positions.tolist()])
        listing = Listing(paths, listing.sizes[chosen.positions])
        if not len(paths):
            raise ValueError(f"none of the images of its split {split!r} is in the folder")
    return listing, Labels(chosen.labels, table.classes, given=True)


def _labels_of_subfolders(root: Path, inside: str, split: str, paths: Paths) -> Labels | None:
    names = _first_level(paths, inside)
    train_names = names
    if inside and split == "test":  # its classes are those of training, under the same numbers
        train = SPLITS["train"][0]
        train_names = _first_level(_list(root, train).paths, train)
    classes = sorted({name for name, _ in train_names or ()}, key=os.fsencode)
    if names is None or len(classes) < 2:
        return None
    if unknown := {name for name, _ in names} - set(classes):
        raise ValueError(
            f"{inside!r} holds the class {min(unknown)!r}, which 'train' lacks; "
            "both need the same subfolders"
        )
    number = {name: i for i, name in enumerate(classes)}
    of_runs = np.array([number[name] for name, _ in names], np.int32)
    return Labels(np.repeat(of_runs, [count for _, count in names]), classes, given=False)


def _first_level(paths: Paths, inside: str) -> list[tuple[str, int]] | None:
    """The first-level subfolders, in order, and how many images each has; None if one image is in
    no subfolder. Paths are sorted, so that those of a subfolder stand together.
    """
    start = len(os.fsencode(inside)) + 1 if inside else 0
    runs: list[tuple[str, int]] = []
    first = 0
    while first < len(paths):
        path = paths.raw(first)
        slash = path.find(b"/", start)
        if slash < 0:
            return None
        behind = path[:slash] + b"0"  # the character after the slash
        last = bisect.bisect_left(range(len(paths)), behind, lo=first, key=paths.raw)
        runs.append((os.fsdecode(path[start:slash]), last - first))
        first = last
    return runs


def _check_channels(paths: Paths, channels: int, bits: Bits) -> None:
    """ValueError where no file can have so many, or one needs a package that is missing."""
    if channels in (1, 3) and bits == 8:
        return
    fitting = WITH_ALPHA if channels in (2, 4) else ANY_CHANNELS
    names = [path.lower() for path in paths]
    if channels not in (1, 3) and not any(name.endswith(fitting) for name in names):
        raise ValueError(
            f"channels is {channels}; its image files give 1 (grey) or 3 (RGB), others need files "
            f"that end in {', '.join(fitting)}"
        )
    check_readers(names, channels, bits)
