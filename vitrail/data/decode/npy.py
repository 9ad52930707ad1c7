"""Images in `.npy` files that are in memory.

Shape legend: C channels · H, W an image.
"""

import io
import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16
from numpy.lib import format as npy
from torch import Tensor

from vitrail.data.decode.image import UnusablePixelsError, as_bad_sample
from vitrail.data.decode.pixels import (
    as_image,
    channel_axis,
    channel_counts,
    check_numbers,
    check_size,
)

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def decode_npy(
    data: bytes, channels: int, bits: Literal[8, 16], id: str
) -> UInt8[Tensor, "{channels} H W"] | UInt16[Tensor, "{channels} H W"]:
    """Decodes whole numbers of shape H x W, H x W x C or C x H x W, as `pixels.as_image`.

    The header's shape must fit the number of bytes; nothing is unpickled.

    Args:
        data: the file's bytes.
        channels: of the result.
        bits: of the result.
        id: the sample's name in messages.

    Raises:
        BadSampleError: another type, shape or channel count, or damaged.
    """
    with as_bad_sample(id, id):
        array, offset = read_header(data)
        check_numbers(array.dtype)
        shape = (1, *array.shape) if len(array.shape) == 2 else array.shape
        axis = channel_axis(shape, *channel_counts(channels)) if len(shape) == 3 else None
        if axis is None:
            raise UnusablePixelsError(
                f"it has the shape {list(array.shape)}; an image of {channels} channels is H x W, "
                "H x W x C or C x H x W"
            )
        check_size(*(shape[1:] if axis == 0 else shape[:2]))
        if len(data) - offset != math.prod(array.shape) * array.dtype.itemsize:
            raise UnusablePixelsError("it does not hold the numbers that its header promises")
        order: Literal["C", "F"] = "F" if array.fortran else "C"
        pixels = np.frombuffer(data, array.dtype, offset=offset).reshape(array.shape, order=order)
        pixels_CHW = np.moveaxis(pixels.reshape(shape, order=order), 0 if axis == 0 else 2, 0)
        return as_image(pixels_CHW, channels, bits)


class Header(NamedTuple):
    """The header of a `.npy` file: the array's shape, order in memory, and type."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def read_header(data: bytes) -> tuple[Header, int]:
    """Returns the header, and the offset of the numbers. Raises ValueError if it is none."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise UnusablePixelsError(f"it is a .npy file of version {version}")
    return Header(*_HEADERS[version](file)), file.tell()


def shape_of(data: bytes) -> tuple[int, Literal[8, 16]]:
    """Returns (channels, bits) of a `.npy` image; channels: the smaller of the two possible axes.

    Raises:
        ValueError: it is no image.
    """
    header, _ = read_header(data)
    check_numbers(header.dtype)
    if len(header.shape) not in (2, 3):
        raise ValueError(f"it has the shape {list(header.shape)}, which is no image's")
    channels = 1 if len(header.shape) == 2 else min(header.shape[0], header.shape[2])
    return channels, 8 if header.dtype.itemsize == 1 else 16
