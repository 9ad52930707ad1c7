"""TIFF files of any channel count and 16 bits, through tifffile.

Shape legend: C channels · H, W an image.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.decode.image import UnusablePixelsError
from vitrail.data.decode.pixels import (
    ADAPTABLE,
    channel_axis,
    check_numbers,
    check_size,
    over_white,
    upright,
)

PALETTE, WHITE_IS_ZERO = 3, 0  # photometric interpretations
ORIENTATION = 274  # the tag, in EXIF too


def check_tifffile() -> None:
    """Raises ValueError if tifffile is not installed."""
    try:
        import tifffile  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "TIFF files of 16 bits, or of other than 1 or 3 channels, need tifffile: "
            "pip install 'vitrail[tiff]'"
        ) from error


def read_tiff(path: Path | str, channels: int) -> np.ndarray | None:
    """Returns the pixels [C, H, W] of a file unconverted, or None if Pillow can read it as well.

    Pillow reads files of up to 8 bits as 1 or 3 channels: palettes, YCbCr, CMYK.

    Args:
        path: of the file.
        channels: wanted; it decides between samples and pages.

    Raises:
        UnusablePixelsError: other numbers than uint8 and uint16, or not the layout of an image.
        Exception: any that tifffile raises on a damaged file.
    """
    import tifffile

    # Its remarks on files; anything that matters raises.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # OME's metadata may refer to further files, anywhere; they are not needed for this one.
    with tifffile.TiffFile(path, is_ome=False) as file:
        page: Any = file.pages.first
        check_size(page.imagelength, page.imagewidth)
        if page.bitspersample <= 8 and channels in ADAPTABLE:
            return None
        return _pixels(file, page, channels)


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
