"""The size and kind of images by the first bytes of their files: no pixel is decoded."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vitrail.data.contract import BadSampleError, Header
from vitrail.data.decode.arrays import NPY_SUFFIX
from vitrail.data.decode.image import as_bad_sample, check_status, open_image, open_stream

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose height and width are exchanged


def header_of_file(path: Path) -> Header | None:
    """Returns the header of an image file or a `.npy` array, None if it cannot be read."""
    try:
        if path.name.lower().endswith(NPY_SUFFIX):
            return _header_of_npy(path)
        with open_image(path, str(path)) as image:
            return _header(image)
    except (BadSampleError, OSError):
        return None


def header_of_bytes(data: bytes) -> Header | None:
    """Returns the header of an image file in memory, None if it cannot be read."""
    try:
        with as_bad_sample("", ""), open_stream(io.BytesIO(data)) as image:
            return _header(image)
    except (BadSampleError, OSError):
        return None


def _header(image: Image.Image) -> Header:
    width, height = image.size
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    sides = (width, height) if orientation in SIDEWAYS else (height, width)
    return Header(*sides, image.mode)


def _header_of_npy(path: Path) -> Header | None:
    with as_bad_sample(str(path), str(path)):
        check_status(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        return None
    # the shorter end is that of the channels, as of nearly all images
    first = array.ndim == 3 and array.shape[0] < array.shape[2]
    height, width = array.shape[1:] if first else array.shape[:2]
    return Header(height, width, str(array.dtype))
