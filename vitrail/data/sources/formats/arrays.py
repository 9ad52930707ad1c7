"""Images and labels in NumPy's files: `npy:FILE` and `npz:FILE`. Nothing is ever unpickled.

Shape legend: N images · C channels · H, W an image.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.contract import Source, Split
from vitrail.data.decode.npy import read_header
from vitrail.data.sources.formats.mapped import (
    Classes,
    Stored,
    channels_first,
    check_images,
    check_labels,
    find_axes,
    in_memory,
    open_stored,
)
from vitrail.data.sources.labels import number_classes
from vitrail.data.sources.spec import check_regular, split_options
from vitrail.data.sources.splits import PARTS, WORDS, no_test_split

# Usual names, in any case; of each line the first that is there.
IMAGES = ("images", "image", "x", "data", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
PREFIXES = {split: [word for part in PARTS[split] for word in WORDS[part]] for split in PARTS}

NONE = "none"  # value of the option `labels`: do not use them
# an .npz is unpacked into memory, a .npy is mapped
NPZ_LIMIT = 2**31  # bytes of an array
HEADER = 2**14  # bytes that hold the header of any array: NumPy's limit is 10,000


def open_npy(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `npy:FILE[,labels=FILE][,axes=NHWC]`: N x H x W, N x H x W x C or N x C x H x W.

    uint8 or uint16. labels: a .npy of N whole numbers or texts, negative numbers for no label;
    relative to the folder of FILE. axes: one letter an axis, if the shape is ambiguous.

    Raises:
        ValueError: no such file, not such an array, labels that do not fit, other channels.
        NoTestSplitError: "test": a single array has none.
    """
    spec = f"npy:{rest}"
    where, options = split_options("npy", rest, ("labels", "axes"))
    path = _file(spec, where, "npy:FILE.npy")
    if split != "train":
        raise no_test_split(
            spec,
            "it is one array",
            "save both in one .npz (train_images, train_labels, test_images, test_labels)",
        )
    array = _load(spec, path)
    axes = find_axes(spec, array.shape, options.get("axes"), channels)
    stored = Stored(path, array.dtype, array.shape, axes, array.offset, _is_fortran(array))
    classes = None
    if options.get("labels", NONE) != NONE:
        values = _load(spec, path.parent / Path(options["labels"]).expanduser())
        classes = number_labels(spec, values, values)
    source = open_stored(spec, stored, classes, channels)
    if classes is None:
        source.unlabelled = "a .npy holds images alone; give their labels by labels=FILE.npy"
    return source


def open_npz(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `npz:FILE[,images=KEY][,labels=KEY|none][,axes=NHWC]`: arrays as `open_npy`, by name.

    Names (IMAGES, LABELS) may have a split before or behind: train_images and test_labels as
    MedMNIST, x_train and y_test as Keras. The test split is one for testing, else for validation
    (`splits.WORDS`); of three splits the one for validation is not used. Without splits all is
    "train".

    Raises:
        ValueError: no such file, not such an archive, no images in it, labels that do not fit, an
            archive above NPZ_LIMIT, other channels.
        NoTestSplitError: "test" of an archive without splits.
    """
    spec = f"npz:{rest}"
    where, options = split_options("npz", rest, ("images", "labels", "axes"))
    path = _file(spec, where, "npz:FILE.npz")
    try:
        with zipfile.ZipFile(path) as archive:
            return _of_archive(spec, archive, options, split, channels)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{spec}: {path} is not a .npz archive that is whole ({error})") from error


def number_labels(spec: str, values: np.ndarray, train: np.ndarray) -> Classes | None:
    """Returns class numbers and names, those of the train labels; None without any.

    Args:
        spec: of the source, for messages.
        values: [N] or [N, 1], whole numbers (negative for no label) or texts.
        train: those of the training split.
    """
    written, codes = np.unique(_flat(spec, values), return_inverse=True)
    known = np.unique(_flat(spec, train))
    texts, train_texts = ([str(value) for value in labels] for labels in (written, known))
    names, labels = number_classes(spec, codes.reshape(-1), texts, train_texts, None)
    return None if names is None else Classes(labels.tolist(), names)


class _Keys(NamedTuple):
    images: str
    labels: str | None
    train_labels: str | None


def _of_archive(
    spec: str,
    archive: zipfile.ZipFile,
    options: dict[str, str],
    split: Split,
    channels: int | None,
) -> Source:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    keys = _find_keys(spec, names, options, split)
    shape, dtype = _header(spec, archive, keys.images)
    axes = find_axes(f"{spec}: {keys.images}", shape, options.get("axes"), channels)
    check_images(spec, dtype, shape, axes, channels)
    classes = None
    if keys.labels is not None and keys.train_labels is not None:
        values, train = (_member(spec, archive, k) for k in (keys.labels, keys.train_labels))
        classes = number_labels(spec, values, train)
        check_labels(spec, classes, shape[axes.index("N")])
    images_NCHW = channels_first(_member(spec, archive, keys.images), axes)
    source = in_memory(spec, images_NCHW, classes, channels)
    if classes is None and options.get("labels") != NONE:
        source.unlabelled = (
            f"none of its arrays ({_listed(names)}) is called {', '.join(LABELS)}, as its images "
            f"are {keys.images!r}; name one by labels=KEY"
        )
    source.notes = tuple(_unread(names, options, keys))
    return source


def _unread(names: Sequence[str], options: dict[str, str], keys: _Keys) -> list[str]:
    """Returns a sentence on arrays of images that belong to no split that is read."""
    if "images" in options:
        return []
    images = {s: key for s in PREFIXES if (key := _of_split(names, IMAGES, PREFIXES[s]))}
    read = {keys.images, images.get("train"), images.get("test")}
    others = [key for key in images.values() if key not in read]
    return [f"its images {', '.join(map(repr, others))} are not read"] if others else []


def _find_keys(spec: str, names: Sequence[str], options: dict[str, str], split: Split) -> _Keys:
    """Returns the names of a split's arrays."""
    for option, name in options.items():
        if option != "axes" and name not in names and (option, name) != ("labels", NONE):
            raise ValueError(f"{spec}: there is no {name!r} in it; it has {_listed(names)}")
    if "images" in options:
        found = {"train": options["images"]}
    else:
        found = {s: key for s in PREFIXES if (key := _of_split(names, IMAGES, PREFIXES[s]))}
        if "train" not in found and (key := _first(names, IMAGES)):
            found["train"] = key
    if "train" not in found:
        raise ValueError(
            f"{spec}: it has {_listed(names)}, and no images by a known name ({', '.join(IMAGES)}, "
            "or with train_ before or _train behind); name them by images=KEY"
        )
    if split not in found:
        raise no_test_split(spec, f"it has {_listed(names)}", "add test_images")
    if "labels" in options:
        label = None if options["labels"] == NONE else options["labels"]
        return _Keys(found[split], label, label)
    train, own = (_label_key(names, found, s) for s in ("train", split))
    return _Keys(found[split], own, train)


def _label_key(names: Sequence[str], found: dict[str, str], split: str) -> str | None:
    """Returns the name of the labels that belong to a split's images."""
    for prefix in PREFIXES[split]:
        if found[split] in _with(prefix, IMAGES, names):
            return next(iter(_with(prefix, LABELS, names)), None)
    return _first(names, LABELS)


def _of_split(names: Sequence[str], kinds: Sequence[str], prefixes: Sequence[str]) -> str | None:
    for prefix in prefixes:
        for name in _with(prefix, kinds, names):
            return name
    return None


def _with(prefix: str, kinds: Sequence[str], names: Sequence[str]) -> list[str]:
    wanted = [form for kind in kinds for form in (f"{prefix}_{kind}", f"{kind}_{prefix}")]
    return [name for form in wanted for name in names if name.lower() == form]


def _first(names: Sequence[str], kinds: Collection[str]) -> str | None:
    return next((name for kind in kinds for name in names if name.lower() == kind), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) or "no arrays"


def _flat(spec: str, values: np.ndarray) -> np.ndarray:
    """Returns labels as int64 or text [N]."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            f"{spec}: its labels have the shape {list(values.shape)}; one label an image is needed "
            "(labels=none leaves them out)"
        )
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "U":
        return values
    raise ValueError(f"{spec}: its labels are {values.dtype}; they must be whole numbers or text")


def _file(spec: str, where: str, usage: str) -> Path:
    if not where:
        raise ValueError(f"{spec} names no file; write {usage}")
    path = Path(where).expanduser()
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ValueError(f"{spec}: {path} {what}; write {usage}")
    return path


def _load(spec: str, path: Path) -> Any:
    """Maps a .npy into memory."""
    try:
        check_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{spec}: there is no file {path}") from error
    except (OSError, ValueError, EOFError, tokenize.TokenError) as error:
        # NumPy's own message advises to unpickle
        why = "it is none, or holds objects" if "pickle" in str(error) else str(error)
        raise ValueError(
            f"{spec}: {path} is not a .npy of numbers that is whole ({why})"
        ) from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{spec}: {path} is a .npz archive; write npz:{path}")
    return array


def _is_fortran(array: np.ndarray) -> bool:
    return array.flags.f_contiguous and not array.flags.c_contiguous


def _header(spec: str, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of an array; only its header is unpacked."""
    try:
        with archive.open(f"{key}.npy") as file:
            header, _ = read_header(file.read(HEADER))
    except (ValueError, tokenize.TokenError) as error:
        raise ValueError(f"{spec}: {key!r} in it is not an array ({error})") from error
    return header.shape, header.dtype


def _member(spec: str, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    shape, dtype = _header(spec, archive, key)
    if (size := math.prod(shape) * dtype.itemsize) > NPZ_LIMIT:
        raise ValueError(
            f"{spec}: {key!r} in it has {size / 2**30:.1f} GiB, and an .npz can only be read "
            f"whole; write it once as .npy: np.save('images.npy', np.load(FILE)['{key}'])"
        )
    try:
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{spec}: {key!r} in it is not an array of numbers ({error})") from error
