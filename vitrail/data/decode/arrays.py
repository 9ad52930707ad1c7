"""Image files beyond 8-bit grey and RGB: `.npy`, `.tif` of any channel count, 16-bit PNG.

Shape legend: C channels · H, W an image.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image
from torch import Tensor

from vitrail.data.decode import png
from vitrail.data.decode.image import (
    File,
    UnusablePixelsError,
    as_bad_sample,
    check_pixels,
    check_status,
    from_pil,
    open_image,
)
from vitrail.data.decode.pixels import (
    ADAPTABLE,
    Bits,
    as_image,
    channel_axis,
    channel_counts,
    check_numbers,
    check_size,
    over_white,
    upright,
)
from vitrail.data.decode.tiff import ORIENTATION, check_tifffile, read_tiff
from vitrail.data.decode.tiff_tags import is_tiff

MAX_ARRAY_BYTES = 2**40  # arrays are mapped, and TIFFs read by page: of neither is a tail read
NPY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # offset in a PNG file of the byte that gives the bits of a value
CHANNELS = ("L", "LA", "RGB", "RGBA", "CMYK")  # Pillow's modes whose bands are channels


def needs_arrays(path: Path | str, channels: int, bits: Bits) -> bool:
    """Returns True for an image that `decode_array_file` has to read, not `image.decode_file`."""
    return bits == 16 or channels not in ADAPTABLE or str(path).lower().endswith(NPY_SUFFIX)


def decode_array_file(
    path: Path | str, channels: int, bits: Bits, id: str | None = None
) -> UInt8[Tensor, "{channels} H W"] | UInt16[Tensor, "{channels} H W"]:
    """Decodes an image file of whole numbers to uint8 (bits 8) or uint16 (bits 16).

    `.npy` holds H x W, H x W x C or C x H x W; tifffile reads TIFF files, channels as samples of a
    pixel or as pages, unless they have 8 bits and `channels` is 1 or 3; Pillow reads those and
    everything else. The pixels are those of `image.decode_file` where that reads the file.
    8 bits become 16 as x 257, and 16 become 8 by rounding: the largest number stands for 1.
    Grey becomes RGB, or RGB grey, to fit `channels`; any other count must be the file's own. In
    TIFF and PNG, alpha is laid over white for 1 or 3 channels, and is a channel for more.

    Args:
        path: of the file.
        channels: of the result; the axis of a `.npy` that has this length holds them.
        bits: of the result, 8 or 16.
        id: the sample's name in messages; the path by default.

    Raises:
        BadSampleError: another channel count, floats or other numbers, an array whose channel axis
            is ambiguous, more than MAX_PIXELS, damage, ...
        OSError, MemoryError: the machine failed.
        ValueError: tifffile is needed and not installed (`check_readers` finds that earlier).
    """
    called = str(path) if id is None else id
    name = str(path).lower()
    if name.endswith(TIFF_SUFFIXES):
        check_readers([name], channels, bits)
    with as_bad_sample(called, str(path)):
        check_status(path, MAX_ARRAY_BYTES)
        if name.endswith(NPY_SUFFIX):
            return as_image(_read_npy(path, channels), channels, bits)
        with open(path, "rb") as file:
            read = _read_deep(file, channels)
            if read is not None:
                return as_image(read, channels, bits)
    with open_image(path, called) as image:
        check_pixels(image)
        return as_image(_of_picture(image, channels), channels, bits)


def read_deep(file: File, channels: int) -> UInt8[Tensor, "{channels} H W"] | None:
    """Returns the image of a TIFF or a PNG that Pillow would cut to 8 bits, or misread; else None.

    Raises:
        UnusablePixelsError: numbers or channels that cannot be used.
        MissingReaderError: tifffile is needed, and not installed.
    """
    read = _read_deep(file, channels)
    return None if read is None else as_image(read, channels, 8)


def _read_deep(file: File, channels: int) -> np.ndarray | None:
    """Returns the pixels [C, H, W]; the position of the file is 0 afterwards."""
    if is_tiff(file):
        read = read_tiff(file, channels)
        file.seek(0)
        return read
    start = file.read(PNG_DEPTH + 1)
    file.seek(0)
    if not start.startswith(PNG_MAGIC) or start[PNG_DEPTH:] != b"\x10":  # 16 bits
        return None
    with png.opened(file) as image:
        check_pixels(image)
        deep = png.is_deep(image)
        orientation = image.getexif().get(ORIENTATION) if deep else None
    read = upright(_opaque(png.read_deep(file), channels), orientation) if deep else None
    file.seek(0)
    return read


def _opaque(pixels_CHW: np.ndarray, channels: int) -> np.ndarray:
    """Returns 1 or 3 channels over white, if there is alpha and so many are asked for."""
    if channels in ADAPTABLE and len(pixels_CHW) in (2, 4):
        return over_white(pixels_CHW, premultiplied=False)
    return pixels_CHW


def check_readers(paths: Collection[str], channels: int, bits: Bits) -> None:
    """Raises ValueError if one of the files needs a package that is not installed."""
    if any(p.lower().endswith(TIFF_SUFFIXES) and needs_arrays(p, channels, bits) for p in paths):
        check_tifffile()


def _read_npy(path: Path | str, channels: int) -> np.ndarray:
    # Mapped: no pixel of an unusable file is read.
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        # NumPy's own message advises to unpickle the file.
        raise UnusablePixelsError("it is not a .npy file, or holds objects") from error
    if not isinstance(array, np.ndarray):
        raise UnusablePixelsError("it is a .npz archive under the name of a .npy file")
    check_numbers(array.dtype)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise UnusablePixelsError(
            f"it has the shape {list(array.shape)}; an image is H x W, H x W x C or C x H x W"
        )
    axis = channel_axis(array.shape, *channel_counts(channels))
    if axis is None:
        raise UnusablePixelsError(
            f"of its shape {list(array.shape)}, neither or both of the first and last axis could "
            f"be the {channels} channels that are asked for; an image is C x H x W or H x W x C"
        )
    pixels_CHW = array if axis == 0 else np.moveaxis(array, 2, 0)
    check_size(*pixels_CHW.shape[1:])
    return pixels_CHW


def _of_picture(image: Image.Image, channels: int) -> np.ndarray:
    """Returns the pixels [C, H, W] of an opened file."""
    if image.mode.startswith("I"):
        values_HW = np.asarray(image)
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise UnusablePixelsError("its pixels are 32-bit, of no agreed range")
        pixels_CHW = values_HW.astype(np.uint16)[None]
    elif channels in ADAPTABLE:
        return from_pil(image, channels).numpy()
    elif image.mode in CHANNELS:
        pixels_CHW = np.moveaxis(np.atleast_3d(np.asarray(image)), 2, 0)
    else:
        raise UnusablePixelsError(f"its mode is {image.mode}, which has no channels")
    return upright(pixels_CHW, image.getexif().get(ORIENTATION))
