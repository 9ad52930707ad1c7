"""WebDataset: images in tar files on a local disk, read in place without unpacking."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vitrail.atomic import parse_json
from vitrail.data.contract import BadSampleError, Detail, Header, Sample, Source, Split
from vitrail.data.decode.headers import header_of_bytes
from vitrail.data.decode.image import MACHINE_ERRNOS, decode_bytes
from vitrail.data.decode.npy import decode_npy, shape_of
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import stamps
from vitrail.data.sources.formats.shard_paths import REMOTE, Shards, find_shards
from vitrail.data.sources.formats.tar_index import (
    IMAGES,
    JSON_LABELS,
    LABELS,
    TarIndex,
    index_shards,
    json_object,
    json_text,
)
from vitrail.data.sources.labels import number_classes
from vitrail.data.sources.left_out import tar_notes
from vitrail.data.sources.spec import errors_of, read_regular, split_options

OPEN_FILES = 32  # of a process; two windows of blocks are 16 (contract.WINDOW)


class Handles:
    """Open files, the least recently used closed first.

    Safe to share with forked processes and threads: each read gives its own position. A spawned
    process gets an empty one.
    """

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=OPEN_FILES)(_OpenFile)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on, fewer at the file's end. OSError as `os.open`."""
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
    """An open file, closed with its last reference: not while another thread still reads it."""

    def __init__(self, path: Path):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASSES_FILE = "classes.json"  # beside the shards: a JSON list of names
PACK_FILE = "pack.json"  # beside the shards of `vitrail pack`, finished or not
MAX_MEMBER = 2**30  # bytes of an image's file
_NPY = IMAGES.index("npy")


class Pixels(NamedTuple):
    """The form of every image read.

    Attributes:
        channels: of an image.
        bits: of a pixel.
    """

    channels: int
    bits: Literal[8, 16]


class WdsSource(Source):
    """Samples of tar shards. An id is the shard's name and the member's: train-0000.tar/cat01.jpg.

    Labels: from `.cls` members, or a .json member's label. Captions: from `.txt`, or a .json
    member's caption; the source is captioned if every sample has one.
    """

    def __init__(
        self,
        spec: str,
        shards: Sequence[Path],
        index: TarIndex,
        pixels: Pixels,
        classes: Sequence[str] | None,
        labels: np.ndarray,
    ):
        self.spec = spec
        self.channels, self.bits = pixels
        self.classes = classes
        self.captioned = bool(len(index) and (index.text_size >= 0).all())
        self._shards = tuple(shards)
        root = os.path.commonpath([shard.parent for shard in shards])
        self._names = tuple(os.path.relpath(shard, root) for shard in shards)
        self._ends = np.cumsum(index.counts).tolist()
        self._index = index
        self._labels = labels  # -1 for none
        self._handles = Handles()

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id, at = self.id(index), self._index
        size = int(at.image_size[index])
        if size < 0:
            raise BadSampleError(id, "its shard is cut off or damaged within it")
        if size > MAX_MEMBER:
            raise BadSampleError(
                id, f"it has {size:,} bytes, more than the limit of {MAX_MEMBER:,}"
            )
        text = self.text(index)
        if self.captioned and text is None:
            raise BadSampleError(id, "its caption is blank, or not UTF-8 text")
        data = self._bytes(index, int(at.image_offset[index]), size, id)
        if at.suffix[index] == _NPY:
            return Sample(
                decode_npy(data, self.channels, self.bits, id), self.label(index), text, id
            )
        if self.bits == 16 or self.channels not in (1, 3):
            raise BadSampleError(
                id, f"it has 8 bits and 1 or 3 channels, not {self.bits} and {self.channels}"
            )
        image = decode_bytes(data, self.channels, id, detail)
        return Sample(image, self.label(index), text, id)

    def id(self, index: int) -> str:
        return f"{self._names[bisect_right(self._ends, index)]}/{self._index.name(index)}"

    def header(self, index: int) -> Header | None:
        at = self._index
        if at.suffix[index] == _NPY or not 0 <= at.image_size[index] <= MAX_MEMBER:
            return None
        try:
            size, offset = int(at.image_size[index]), int(at.image_offset[index])
            return header_of_bytes(self._bytes(index, offset, size, self.id(index)))
        except BadSampleError:
            return None

    def text(self, index: int) -> str | None:
        """Reads the caption from the shard; None if it is blank, not UTF-8, or unreadable."""
        at = self._index
        size = int(at.text_size[index])
        if size < 0:
            return None
        try:
            data = self._bytes(index, int(at.text_offset[index]), size, self.id(index))
            if at.of_json[index]:
                return json_text(json_object(data))
            return data.decode().strip() or None
        except (BadSampleError, UnicodeDecodeError):
            return None

    def _bytes(self, index: int, offset: int, size: int, id: str) -> bytes:
        shard = self._shards[bisect_right(self._ends, index)]
        try:
            data = self._handles.read(shard, offset, size)
        except OSError as error:
            if error.errno in MACHINE_ERRNOS:
                raise
            why = error.strerror or str(error)
            raise BadSampleError(id, f"its shard cannot be read ({why})") from error
        if len(data) < size:
            raise BadSampleError(id, f"its shard {shard} has become shorter")
        return data

    def fingerprint(self) -> str:
        """Returns a digest of the shards' names, and of names, places, sizes and labels in them."""
        digest = hashlib.blake2b(repr((self._names, self._ends)).encode(), digest_size=16)
        at = self._index
        for array in (at.names, at.name_ends, at.image_offset, at.image_size, self._labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def written(self) -> Sequence[tuple[str, int, int]]:
        return stamps(len(self._shards), lambda i: (self._names[i], self._shards[i]))

    def blocks(self) -> Sequence[range]:
        return [range(a, b) for a, b in zip([0, *self._ends[:-1]], self._ends, strict=True)]


def open_wds(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `wds:PATTERN[,test=PATTERN][,image=EXT][,classes=FILE]`, as `shard_paths.find_shards`.

    image: suffix of a sample's image, if several members could be it. classes: a JSON list of the
    class names, by default classes.json beside the shards if it is there; numbers of `.cls` are
    places in it. Without one, classes are the values of training's `.cls`, in order. `.npy` images
    have the channels and bits of the first.

    Raises:
        ValueError: nothing is there, no sample has an image, it is remote or compressed, it is a
            pack that is not finished, a class that training lacks, or channels that do not fit.
        NoTestSplitError: "test" of shards that have none.
    """
    spec = f"wds:{rest}"
    pattern, options = split_options("wds", rest, ("classes", "image", "test"))
    _refuse_remote(spec, pattern, options.get("test", ""))
    shards = find_shards("wds", pattern, options.get("test"), ".tar")
    chosen = shards.of(split, spec)
    image = options.get("image", "").lower().lstrip(".") or None
    _check_pack(spec, chosen[0].parent)
    index = index_shards(chosen, image)
    if not len(index):
        left = "".join(f"; {note}" for note in tar_notes(index.left))
        raise ValueError(
            f"{spec}: no sample has an image; members that end in {', '.join(IMAGES)} are images, "
            f"after one dot, or name another ending by the option image=EXT{left}"
        )
    train = index if split == "train" else index_shards(shards.train, image)
    names = _names(spec, shards, options.get("classes"))
    values, train_values = ([str(value) for value in of.labels] for of in (index, train))
    classes, labels = number_classes(spec, index.label, values, train_values, names)
    pixels = _pixels(spec, chosen, index, channels)
    source = WdsSource(spec, chosen, index, pixels, classes, labels)
    source.notes = (*shards.notes, *tar_notes(index.left), *_missing(index))
    if classes is None:
        source.unlabelled = (
            f"no image has a member {', '.join(f'.{suffix}' for suffix in LABELS)} beside it, or a "
            f".json with {', '.join(JSON_LABELS)}"
        )
    return source


def _missing(index: TarIndex) -> list[str]:
    """Returns a sentence on captions that only some samples have."""
    without = int((index.text_size < 0).sum())
    if not 0 < without < len(index):
        return []
    return [
        f"{without:,} of {len(index):,} images have no caption, so the captions of the others are "
        "not used"
    ]


def _refuse_remote(spec: str, *patterns: str) -> None:
    for pattern in patterns:
        if remote := REMOTE.search(pattern):
            raise ValueError(
                f"{spec}: {remote[1]}: is not a local file; samples are read in any order, which a "
                "stream does not allow: copy the shards to a disk (data sets of the Hugging Face "
                "hub can be read by hf:NAME,stream=yes)"
            )
        if pattern.lower().endswith(COMPRESSED):
            raise ValueError(
                f"{spec}: compressed shards cannot be read from the middle, which a random order "
                "needs; unpack them to .tar (gunzip): images hardly become smaller by compression"
            )


def _check_pack(spec: str, folder: Path) -> None:
    try:
        state = parse_json(read_regular(folder / PACK_FILE))
    except (OSError, ValueError):
        return
    if isinstance(state, dict) and state.get("complete") is False:
        raise ValueError(f"{spec}: this pack is not finished; run the same `vitrail pack` again")


def _names(spec: str, shards: Shards, option: str | None) -> list[str] | None:
    folder = shards.train[0].parent
    path = folder / Path(option).expanduser() if option else folder / CLASSES_FILE
    if not option and not path.exists():
        path = folder.parent / CLASSES_FILE  # of train/ and test/
    if not option and not path.exists():
        return None
    try:
        names = parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{spec}: {path} cannot be read as JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{spec}: {path} must hold a JSON list of names, as ["cat", "dog"]')
    return names


def _pixels(spec: str, shards: Sequence[Path], index: TarIndex, channels: int | None) -> Pixels:
    """Returns the form of the first image if it is an array, else that of image files."""
    arrays = np.flatnonzero((index.suffix == _NPY) & (index.image_size >= 0))
    if len(arrays):
        first = int(arrays[0])
        shard = shards[int(np.searchsorted(np.cumsum(index.counts), first, side="right"))]
        data = Handles().read(shard, int(index.image_offset[first]), 2**14)
        with errors_of(f"{spec}: its first array, {index.name(first)}"):
            own, bits = shape_of(data)
        return Pixels(channels or own, bits)
    return Pixels(choose_channels(spec, channels), 8)
