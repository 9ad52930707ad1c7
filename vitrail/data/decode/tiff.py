"""TIFF files: what their tags declare decides how they are read, whichever way they come.

Shape legend: C channels · H, W an image.
"""

import logging
from importlib.util import find_spec
from typing import Any

import numpy as np

from vitrail.data.decode.image import File, MissingReaderError, UnusablePixelsError
from vitrail.data.decode.pixels import (
    ADAPTABLE,
    channel_axis,
    check_numbers,
    check_size,
    over_white,
    upright,
)
from vitrail.data.decode.tiff_tags import (
    BLACK_IS_ZERO,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    Tags,
    read_tags,
)

PLAIN = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)  # channels are values, not codes of colours
ORIENTATION = 274  # the tag, in EXIF too


def check_tifffile() -> None:
    """Raises MissingReaderError, a ValueError, if tifffile is not installed."""
    if find_spec("tifffile") is None:
        raise MissingReaderError(
            "TIFF files of 16 bits, or of other than 1 or 3 channels, need tifffile: "
            "pip install 'vitrail[tiff]'"
        )


def read_tiff(file: File, channels: int) -> np.ndarray | None:
    """Returns the pixels [C, H, W] of a file unconverted, or None if Pillow reads the same.

    Pillow reads files of up to 8 bits as 1 or 3 channels: palettes, YCbCr, CMYK. Signed and
    floating-point numbers and those of more than 16 bits are refused, whatever their values. As
    many pages as channels asked for are the channels; else the first page is the image.

    Args:
        file: of the image.
        channels: wanted; it decides between samples and pages.

    Raises:
        UnusablePixelsError: other numbers than uint8 and uint16, or not the layout of an image.
        MissingReaderError: tifffile is needed, and not installed.
        Exception: any that tifffile raises on a damaged file.
    """
    tags = read_tags(file)
    check_size(tags.height, tags.width)
    _check_declared(tags, channels)
    as_channels = tags.samples == 1 and tags.pages == channels > 1
    if channels in ADAPTABLE and not as_channels:
        grey = tags.samples == 1 and tags.photometric == BLACK_IS_ZERO
        if tags.bits <= 8 or (grey and find_spec("tifffile") is None):
            return None
    check_tifffile()
    import tifffile

    # Its remarks on files; anything that matters raises.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # OME's metadata may refer to further files, anywhere; they are not needed for this one.
    with tifffile.TiffFile(file, is_ome=False) as opened:
        page: Any = opened.pages.first
        check_size(page.imagelength, page.imagewidth)
        return _pixels(opened, page, channels)


def _check_declared(tags: Tags, channels: int) -> None:
    """Raises UnusablePixelsError for a declared type that no reader here has."""
    if tags.kind == "floating-point":
        raise UnusablePixelsError(
            f"its pixels are floating-point ({tags.bits} bits a value), of no agreed range; map "
            "your range to whole numbers of 16 bits"
        )
    if tags.kind == "signed":
        raise UnusablePixelsError(
            f"its pixels are signed whole numbers (int{tags.bits}); shift your range to begin at "
            "0, and save it as uint8 or uint16"
        )
    if tags.bits > 8 and tags.bits != 16:
        raise UnusablePixelsError(
            f"it has {tags.bits} bits a value; save it with 8 or 16, as whole numbers"
        )
    if channels in ADAPTABLE and tags.photometric in PLAIN and tags.colours not in ADAPTABLE:
        raise UnusablePixelsError(
            f"it has {tags.samples} channels, and {channels} are asked for; open the data with "
            f"channels={tags.samples}, or leave such files out"
        )


def _pixels(file: Any, page: Any, channels: int) -> np.ndarray:
    if page.photometric == PALETTE:
        raise UnusablePixelsError("its pixels are numbers of a palette's colours, not channels")
    if page.bitspersample not in (8, 16):
        raise UnusablePixelsError(
            f"it has {page.bitspersample} bits a value; save it with 8 or 16, as whole numbers"
        )
    check_numbers(page.dtype)
    # Alpha included. Nothing is decoded of a file that has more.
    if (samples := page.samplesperpixel) > max(channels, 4):
        raise UnusablePixelsError(f"it has {samples} channels, and {channels} are asked for")
    if page.axes == "YX":
        pixels_CHW = _pages(file, page, channels)
    elif page.axes in ("YXS", "SYX"):
        pixels_CHW = page.asarray()
        pixels_CHW = np.moveaxis(pixels_CHW, 2, 0) if page.axes == "YXS" else pixels_CHW
    else:
        raise UnusablePixelsError(f"its axes are {page.axes}; an image has two, and channels")
    if page.photometric == WHITE_IS_ZERO:
        pixels_CHW = np.iinfo(pixels_CHW.dtype).max - pixels_CHW
    alpha = next((int(kind) for kind in page.extrasamples if kind in (1, 2)), None)
    if alpha is not None and channels in ADAPTABLE and len(pixels_CHW) in (2, 4):
        pixels_CHW = over_white(pixels_CHW, premultiplied=alpha == 1)
    orientation = page.tags.get(ORIENTATION)
    return upright(pixels_CHW, None if orientation is None else orientation.value)


def _pages(file: Any, page: Any, channels: int) -> np.ndarray:
    """Returns the pages as channels if there are as many, else the first, as of any frames."""
    if file.is_shaped and len(file.series[0].shape) == 3:
        # tifffile wrote an array with its shape: H x W x C became H pages of W x C.
        shape = file.series[0].shape
        axis = channel_axis(shape, (channels,))
        if axis == 2:
            check_size(*shape[:2])
            return np.moveaxis(file.series[0].asarray(), 2, 0)
    count = len(file.pages)
    if count != channels:
        if channels in ADAPTABLE:
            return page.asarray()[None]
        raise UnusablePixelsError(
            f"it has {count} page{'' if count == 1 else 's'} of one channel, and {channels} "
            "channels are asked for"
        )
    pages = [file.pages[i] for i in range(count)]
    if any(other.shape != page.shape or other.dtype != page.dtype for other in pages):
        raise UnusablePixelsError("its pages differ in size or numbers, so they are no channels")
    return np.stack([other.asarray() for other in pages])
