"""A folder of images, flat or nested, labelled or not."""

import bisect
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from vitrail.data.contract import Detail, Source, Split
from vitrail.data.decode.arrays import NPY_SUFFIX, check_readers, decode_array_file, needs_arrays
from vitrail.data.decode.formats import SUFFIXES
from vitrail.data.decode.image import decode_file
from vitrail.data.decode.pixels import Bits
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.formats.folder_labels import LabelTable, read_labels
from vitrail.data.sources.formats.listing import Listing, Paths, list_files
from vitrail.data.sources.labels import nfc, number_names
from vitrail.data.sources.left_out import left_out_notes, some
from vitrail.data.sources.spec import errors_of, split_options
from vitrail.data.sources.splits import (
    ForeignClassesError,
    folder_notes,
    no_test_split,
    part_notes,
    part_of,
    split_folders,
)

OPTIONS = ("bits", "labels")

# Suffixes of files that can hold channels other than grey and RGB; the last with alpha, as 2 or 4.
ANY_CHANNELS = (NPY_SUFFIX, ".tif", ".tiff")
WITH_ALPHA = (*ANY_CHANNELS, ".png")


class Labels(NamedTuple):
    """The labels of a folder's images.

    Attributes:
        numbers: int32 [N], class numbers, -1 for no label.
        classes: names of the classes.
        given: true if a table gives them, false if the images' own paths do.
    """

    numbers: Int32[np.ndarray, " N"]
    classes: Sequence[str]
    given: bool


class FolderSource(FileSource):
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
        numbers, classes = (None, None) if labels is None else (labels.numbers, labels.classes)
        decode = partial(_decode, bits)
        super().__init__(spec, root, listing.paths, numbers, classes, channels, decode=decode)
        self.bits = bits
        self._listing = listing
        self._given = labels is not None and labels.given

    def fingerprint(self) -> str:
        """Returns a digest of paths, file sizes as listed, and labels of a table.

        Times do not count, so a copied folder is the same one.
        """
        digest = hashlib.blake2b(digest_size=16)
        paths, sizes, _ = self._listing
        for path, size in zip(paths.raws(), sizes.tolist(), strict=True):
            digest.update(b"%b\0%d\0" % (path, size))
        if self._given:
            digest.update(repr(list(self.classes or ())).encode())
            digest.update(self._labels.tobytes())
        return digest.hexdigest()


def _decode(bits: Bits, path: Path, channels: int, id: str, detail: Detail | None) -> Tensor:
    if needs_arrays(id, channels, bits):
        return decode_array_file(path, channels, bits, id)
    return decode_file(path, channels, id, detail)


def open_folder(
    rest: str, split: Split, channels: int | None, folders: Mapping[str, str] | None = None
) -> Source:
    """Opens `folder:DIR[,labels=FILE][,bits=16]`.

    Hidden files and folders, and those that vitrail has written, are skipped; links to folders are
    followed (`listing.list_files`).
    Files are those of SUFFIXES, or, if there are none, `.npy` arrays.

    Splits: those of FILE's column; else two subfolders of DIR, one for training and one for testing
    or validation (`splits.WORDS`). Labels: those of FILE, relative to DIR, which may lack some of
    the images (`folder_labels`); without it the first-level subfolders of the split, if every image
    is in one and there are two or more. bits: 16 reads 16-bit images as such.

    Args:
        rest: of the spec, after "folder:".
        split: "train" or "test".
        channels: of every image, None for 3.
        folders: names of the subfolders of the splits, if they are not to be searched.

    Raises:
        ValueError: no such folder, not a folder, no images in it, two subfolders for one split, a
            test class that training lacks, channels that none of its files can have, or a FILE
            that cannot be used.
        NoTestSplitError: "test" of a folder that has none.
    """
    spec = f"folder:{rest}"
    place, options = _options(rest)
    bits = _bits(spec, options.get("bits", "8"))
    root = Path(place).expanduser()
    _check_folder(spec, place, root)
    with errors_of(spec):
        table = read_labels(root, options["labels"]) if "labels" in options else None
        found = _split_folders(spec, root, split, table, folders)
        inside = found.get(split, "")
        listing = _list(root, inside)
        left = left_out_notes(listing.left, [options["labels"]] if table and not inside else [])
        if not len(listing.paths):
            raise ValueError(
                f"no images in {root / inside}; files must end in {', '.join(SUFFIXES)}"
                + "".join(f" ({note})" for note in left)
            )
        notes, reason = [*_notes_on_splits(root, table, found), *left], ""
        if table is None:
            labels, reason = _labels_of_subfolders(root, found, split, listing.paths, notes)
        else:
            listing, labels = _labels_of_table(spec, table, inside, split, listing, notes)
    _check_channels(spec, listing.paths, channels or 3, bits)
    source = FolderSource(spec, root, listing, labels, channels or 3, bits)
    source.notes, source.unlabelled = tuple(notes), reason
    return source


def _notes_on_splits(root: Path, table: LabelTable | None, found: Mapping[str, str]) -> list[str]:
    if table is not None and table.splits is not None:
        return part_notes([part_of(value) for value in table.splits], "rows")
    return folder_notes(root, list(found.values()))


def _options(rest: str) -> tuple[str, dict[str, str]]:
    """Returns the folder and the options; a folder's name may have the form of an option."""
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


def _split_folders(
    spec: str,
    root: Path,
    split: Split,
    table: LabelTable | None,
    folders: Mapping[str, str] | None,
) -> Mapping[str, str]:
    """Returns the subfolder of each split, empty for a folder that is not split by subfolders."""
    if table is not None and table.splits is not None:
        return {}
    if folders is None:
        found = split_folders(root)
    else:
        found = {key: name for key, name in folders.items() if (root / name).is_dir()}
    wanted = ("train", "val" if split == "val" else "test")
    if found.keys() >= set(wanted):
        return {key: found[key] for key in wanted}
    if split != "train":
        column = "" if table is None else ", and its table of labels a column 'split'"
        lack = f"it lacks the subfolders 'train' and 'test' (or 'val'){column}"
        raise no_test_split(spec, lack, "add them")
    return {}


def _list(root: Path, inside: str) -> Listing:
    listing = list_files(root, inside, SUFFIXES)
    return listing if len(listing.paths) else list_files(root, inside, (NPY_SUFFIX,))


def _labels_of_table(
    spec: str, table: LabelTable, inside: str, split: Split, listing: Listing, notes: list[str]
) -> tuple[Listing, Labels]:
    with errors_of(table.name):
        chosen = table.choose(spec, listing.paths, inside, split, notes)
    if chosen.positions is not None:
        paths = Paths.of([listing.paths.raw(i) for i in chosen.positions.tolist()])
        listing = Listing(paths, listing.sizes[chosen.positions], listing.left)
        if not len(paths):
            raise ValueError(f"none of the images of its split {split!r} is in the folder")
    return listing, Labels(chosen.labels, table.classes, given=True)


def _labels_of_subfolders(
    root: Path, folders: Mapping[str, str], split: Split, paths: Paths, notes: list[str]
) -> tuple[Labels | None, str]:
    """Returns the labels by subfolder, or the reason why there are none; adds to the notes."""
    inside, train = folders.get(split, ""), folders.get("train", "")
    names = _first_level(paths, inside)
    # a test split has the classes of training, under the same numbers
    if inside == train:
        train_paths, train_names = paths, names
    else:
        train_paths = _list(root, train).paths
        train_names = _first_level(train_paths, train)
    found = sorted({name for name, _ in train_names or ()}, key=os.fsencode)
    number, classes = number_names(found)
    if train_names is None or len(classes) < 2:
        reason = _no_classes(train_paths, train, train_names)
    elif names is None:
        reason = _no_classes(paths, inside, None)
    else:
        reason = ""
    if reason or names is None:
        if any(_is_below(path, inside) for path in paths.raws()):
            notes.append(f"no labels: {reason}")
        return None, reason
    if len(classes) < len(found):
        notes.append(
            f"{len(found) - len(classes)} class folders have a name that another has in the other "
            "Unicode form (NFC and NFD); each such pair is one class"
        )
    if unknown := {name for name, _ in names if nfc(name) not in number}:
        foreign = len(unknown) == len({name for name, _ in names})
        raise (ForeignClassesError if foreign else ValueError)(
            f"{inside!r} holds the class {min(unknown)!r}, which {train!r} lacks; "
            "both need the same subfolders"
        )
    of_runs = np.array([number[nfc(name)] for name, _ in names], np.int32)
    return Labels(np.repeat(of_runs, [count for _, count in names]), classes, given=False), ""


def _is_below(path: bytes, inside: str) -> bool:
    """Returns whether an image is in a subfolder of the folder `inside`."""
    return b"/" in path[len(os.fsencode(inside)) + 1 if inside else 0 :]


def _no_classes(paths: Paths, inside: str, names: list[tuple[str, int]] | None) -> str:
    """Returns the reason why the subfolders of a folder are no classes."""
    if names:
        return f"all images are in the one subfolder {names[0][0]!r}, and classes are two or more"
    flat = [os.fsdecode(path) for path in paths.raws() if not _is_below(path, inside)]
    if len(flat) == len(paths):
        return f"its images are in no subfolders{f' of {inside}' if inside else ''}"
    are = "image is" if len(flat) == 1 else "images are"
    return (
        f"{len(flat)} {are} in no class folder ({some(flat)}), so the subfolders are not taken as "
        "classes; move or remove them"
    )


def _first_level(paths: Paths, inside: str) -> list[tuple[str, int]] | None:
    """Returns the first-level subfolders in order, and the number of images in each.

    None if one image is in no subfolder. Paths are sorted, so those of a subfolder are adjacent.
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


def _check_channels(spec: str, paths: Paths, channels: int, bits: Bits) -> None:
    """ValueError if no file can have that many, or one needs a package that is missing."""
    if channels in (1, 3) and bits == 8:
        return
    fitting = WITH_ALPHA if channels in (2, 4) else ANY_CHANNELS
    names = [path.lower() for path in paths]
    if not any(name.endswith(fitting) for name in names):
        others = f", others need files that end in {', '.join(fitting)}"
        choose_channels(spec, channels, others=others)
    with errors_of(spec):
        check_readers(names, channels, bits)
