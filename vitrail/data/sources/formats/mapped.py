"""Images of one size in one array of a file: read as they are needed, or all at once.

Shape legend: N images · C channels · H, W an image.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vitrail.data.contract import BadSampleError, Detail, Header, Sample, Source
from vitrail.data.decode.image import MACHINE_ERRNOS, UnusablePixelsError
from vitrail.data.decode.pixels import (
    ADAPTABLE,
    as_image,
    channel_axis,
    channel_counts,
    check_numbers,
    check_size,
)
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import stamps
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.spec import errors_of

# Up to this size images become one tensor on the device, which is faster than any reading from
# files: all of CIFAR, or 21,000 of 128 x 128. Larger ones would take memory that training needs.
IN_MEMORY = 2**30  # bytes of the images as they are read

FEW = 16  # an axis no longer than this is taken for channels if nothing else decides
FINGERPRINTED = 64  # images that a fingerprint reads


class Stored(NamedTuple):
    """An array of images in a file.

    Attributes:
        path: of the file.
        dtype: of the array.
        shape: of the array.
        axes: a letter for each axis: "NHW", "NHWC", "NCHW", or in any other order.
        offset: of its first byte.
        fortran: true if the first axis is the fastest.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    axes: str
    offset: int = 0
    fortran: bool = False

    def size(self, axis: str) -> int:
        """Returns the length of an axis, 1 for a missing one."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def map(self) -> np.ndarray:
        """Maps all images as [N, C, H, W]; nothing is read yet."""
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
        return channels_first(array, self.axes)


class Classes(NamedTuple):
    """The labels of images.

    Attributes:
        labels: N class numbers, negative for no label.
        names: of the classes.
    """

    labels: Sequence[int]
    names: Sequence[str]


class MappedSource(Source):
    """Images of a file too large for memory, which is mapped at the first read.

    Args:
        spec: of the source, as the user wrote it.
        stored: the array.
        classes: labels, if any.
        channels: of every image read, None for the images' own; grey ones may become 3 channels.
    """

    def __init__(self, spec: str, stored: Stored, classes: Classes | None, channels: int | None):
        self.spec = spec
        self.channels = channels or stored.size("C")
        self.bits = 8 if stored.dtype.itemsize == 1 else 16
        self.classes = None if classes is None else tuple(classes.names)
        self._labels = None if classes is None else [int(label) for label in classes.labels]
        self._stored = stored
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return self._stored.size("N")

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id = self.id(index)
        try:
            image = as_image(self._images()[index], self.channels, self.bits)
        except UnusablePixelsError as error:
            raise BadSampleError(id, str(error)) from error
        return Sample(image, self.label(index), None, id)

    def id(self, index: int) -> str:
        return str(index)

    def header(self, index: int) -> Header:
        return Header(self._stored.size("H"), self._stored.size("W"), str(self._stored.dtype))

    def fingerprint(self) -> str:
        """Returns a digest of shape, dtype, labels, and the pixels of FINGERPRINTED images."""
        stored = self._stored
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((stored.dtype.str, stored.shape, stored.axes, self._labels)).encode())
        for index in np.linspace(0, len(self) - 1, min(FINGERPRINTED, len(self))).astype(int):
            digest.update(self._images()[index].tobytes())
        return digest.hexdigest()

    def written(self) -> Sequence[tuple[str, int, int]]:
        return stamps(1, lambda _: (self._stored.path.name, self._stored.path))

    def _images(self) -> np.ndarray:
        # a forked process may use its parent's map: there is no shared position in it
        if self._map is None:
            self._map = self._stored.map()
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        # a pickled map would be the whole file
        return self.__dict__ | {"_map": None}


def open_stored(spec: str, stored: Stored, classes: Classes | None, channels: int | None) -> Source:
    """Opens images in memory up to IN_MEMORY bytes, else to be read as they are needed.

    Raises:
        ValueError: numbers that are no pixels, no images, too large ones, another number of labels
            than of images, channels that do not fit, or a file that is too short or not readable.
    """
    check_images(spec, stored.dtype, stored.shape, stored.axes, channels)
    check_labels(spec, classes, stored.size("N"))
    try:
        if (size := stored.path.stat().st_size) < stored.offset + _bytes(stored):
            raise ValueError(
                f"{spec}: {stored.path} has {size:,} bytes, and its {list(stored.shape)} values "
                f"need {stored.offset + _bytes(stored):,}; it is cut off, fetch it again"
            )
        if _bytes(stored) > IN_MEMORY:
            return MappedSource(spec, stored, classes, channels)
        return in_memory(spec, np.array(stored.map()), classes, channels)
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise
        raise ValueError(f"{spec}: {stored.path} cannot be read ({error.strerror})") from error


def in_memory(
    spec: str, images_NCHW: np.ndarray, classes: Classes | None, channels: int | None
) -> Source:
    """Returns a MemorySource of images, which are not copied if they are contiguous."""
    wanted = np.uint8 if images_NCHW.dtype.itemsize == 1 else np.uint16
    pixels = torch.from_numpy(np.ascontiguousarray(images_NCHW, dtype=wanted))
    labels = None if classes is None else torch.as_tensor(np.asarray(classes.labels, np.int64))
    return MemorySource(spec, pixels, labels, None if classes is None else classes.names, channels)


def check_images(
    spec: str, dtype: np.dtype, shape: Sequence[int], axes: str, channels: int | None
) -> None:
    """ValueError if an array of such a shape cannot be used as images."""
    sizes = dict(zip(axes, shape, strict=True))
    own = sizes.get("C", 1)
    with errors_of(spec):
        check_numbers(dtype)
        check_size(sizes["H"], sizes["W"])
    if not sizes["N"] or not own:
        raise ValueError(f"{spec}: its array has the shape {list(shape)} and holds no images")
    choose_channels(spec, channels, own)


def find_axes(spec: str, shape: Sequence[int], given: str | None, channels: int | None) -> str:
    """Returns the names of the axes of an array: `given`, or NHW, NHWC or NCHW by its shape.

    Args:
        spec: of the source, for messages.
        shape: of the array.
        given: by the user, None to decide by the shape.
        channels: that the user asks for, if any.

    Raises:
        ValueError: the shape is ambiguous, or the given axes do not fit it.
    """
    if given is not None:
        if sorted(given) not in (sorted("NHW"), sorted("NHWC")) or len(given) != len(shape):
            raise ValueError(
                f"{spec}: axes={given} does not fit its array of shape {list(shape)}; give one "
                "letter an axis: N images, H rows, W columns, C channels (such as NHWC)"
            )
        return given
    if len(shape) == 3 and shape[-1] not in ADAPTABLE:
        return "NHW"
    if len(shape) == 3:
        raise ValueError(
            f"{spec}: its array of shape {list(shape)} could be one image of {shape[-1]} channels; "
            "add an axis in front (array[None]), or say axes=NHW if these are grey images"
        )
    if len(shape) != 4:
        raise ValueError(
            f"{spec}: its array has the shape {list(shape)}; images are N x H x W, N x H x W x C "
            "or N x C x H x W"
        )
    counts = () if channels is None else channel_counts(channels)
    axis = channel_axis(shape[1:], *counts, ADAPTABLE)
    first, middle, last = shape[1:]
    if axis is None and (first == middle) != (middle == last):  # square images
        axis = 2 if first == middle else 0
    if axis is None:
        axis = channel_axis(shape[1:], range(1, FEW + 1))
    if axis is None:
        raise ValueError(
            f"{spec}: which axis of its shape {list(shape)} holds the channels cannot be told; "
            "say axes=NHWC or axes=NCHW"
        )
    return "NCHW" if axis == 0 else "NHWC"


def channels_first(array: np.ndarray, axes: str) -> np.ndarray:
    """Returns a view [N, C, H, W] of an array."""
    if "C" not in axes:
        array, axes = array[..., None], axes + "C"
    return array.transpose([axes.index(axis) for axis in "NCHW"])


def _bytes(stored: Stored) -> int:
    return math.prod(stored.shape) * stored.dtype.itemsize


def check_labels(spec: str, classes: Classes | None, images: int) -> None:
    """ValueError unless there is one label for each image."""
    if classes is not None and len(classes.labels) != images:
        raise ValueError(
            f"{spec}: it has {len(classes.labels)} labels for {images} images; there must be one "
            "an image"
        )
