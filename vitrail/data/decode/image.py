"""Image files to uint8 tensors; every fault of a file becomes a BadSampleError with the reason.

Pillow opens them all: it reads headers, EXIF and damaged files. simplejpeg decodes the pixels of a
plain JPEG if it is installed, in less time (benchmarks/decode.py) and with the same bits
(`jpeg.py`). They stay interleaved, as decoders write them and torch's resize reads them: the
tensors have the shape [C, H, W] and the memory of [H, W, C].
"""

import errno
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.data.contract import BadSampleError, Detail
from vitrail.data.decode.formats import FORMATS, NAMES
from vitrail.data.decode.jpeg import decode_whole

logger = logging.getLogger(__name__)

# Pillow's own limit for suspicious files: 268 MB once decoded to RGB. Photographs stay below (a
# 61-megapixel full-frame camera is at two thirds); a 30,000 x 30,000 bomb is ten times above.
MAX_PIXELS = 89_478_485

# Faults of the machine, not of the file: a failing disk or network, too many open files, no memory.
# They pass, and a quarantine does not.
MACHINE_ERRNOS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


# Decoders that can decode at a reduced size. MPO: several JPEGs, of a camera or phone.
_SCALABLE = ("JPEG", "MPO")

_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels

_EMPTY = "the file is empty"

# Bytes of a file: 89 megapixels with alpha and 16 bits, uncompressed, are 0.7 GB. Some of Pillow's
# decoders read a file to its end, and a file may say that it has a terabyte.
MAX_BYTES = 2**30

# Bytes of a JPEG that are read at once: of its metadata, and for each pixel (of noise at quality
# 100 it has less than 4). Of a larger file, Pillow reads what belongs to the image.
_METADATA, _PER_PIXEL = 2**24, 4

File = io.BufferedReader | io.BytesIO


class UnusablePixelsError(ValueError):
    """An intact image that cannot be used; the message is the reason in plain words."""


class MissingReaderError(ValueError):
    """A package is missing that reads such files: no fault of the file, and none can be read."""


def decode_file(
    path: Path | str, channels: int, id: str | None = None, detail: Detail | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """Decodes an image file as `from_pil` does; of several frames, the first.

    Args:
        path: of the file.
        channels: of the result, 1 or 3.
        id: the sample's name in messages; the path by default.
        detail: the detail that will be used. A JPEG with more is decoded smaller: its sides are
            divided by 2, 4 or 8 and rounded up. Other formats are decoded whole.

    Raises:
        BadSampleError, OSError, MemoryError: as `open_image`.
    """
    with as_bad_sample(str(path) if id is None else id, str(path)):
        check_status(path)
        with open(path, "rb") as file:
            return _decode(file, channels, detail)


def decode_bytes(
    data: bytes | memoryview, channels: int, id: str, detail: Detail | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """Decodes an image file that is in memory; the pixels are those of `decode_file`.

    Args:
        data: the file's bytes.
        channels: of the result, 1 or 3.
        id: the sample's name in messages.
        detail: as in `decode_file`.

    Raises:
        BadSampleError, MemoryError: as `open_image`.
    """
    # lazy import: it reads headers, and imports this file
    from vitrail.data.decode.declared import note_lost

    with as_bad_sample(id, id):
        if not len(data):
            raise UnusablePixelsError(_EMPTY)
        note_lost(data, channels, id)
        return _decode(io.BytesIO(data), channels, detail)


def _decode(file: File, channels: int, detail: Detail | None) -> Tensor:
    # lazy import: both are readers of arrays, which import this file
    from vitrail.data.decode import arrays

    if (deep := arrays.read_deep(file, channels)) is not None:
        return deep
    with open_stream(file) as image:
        check_pixels(image)
        by = 1
        if detail is not None and image.format in _SCALABLE:
            by = detail.reduction(image.height, image.width)
        if by > 1:
            # Pillow takes the largest of 2, 4, 8 that leaves no side below these: exactly `by`.
            image.draft(None, (max(1, image.width // by), max(1, image.height // by)))
        elif _is_plain_jpeg(image, channels):
            most = _METADATA + _PER_PIXEL * image.width * image.height
            if file.seek(0, io.SEEK_END) <= most:
                file.seek(0)
                if (pixels_CHW := decode_whole(file.read(most), image.mode)) is not None:
                    return pixels_CHW
        return from_pil(image, channels)


@contextmanager
def open_image(path: Path | str, id: str) -> Iterator[Image.Image]:
    """Opens an image file; every fault within becomes a BadSampleError.

    No pixel is decoded yet: `check_pixels` comes before that.

    Raises:
        BadSampleError: with `id` and the reason.
        OSError, MemoryError: the machine failed (MACHINE_ERRNOS), which is no fault of the file.
    """
    with as_bad_sample(id, str(path)):
        check_status(path)
        with open(path, "rb") as file, open_stream(file) as image:
            yield image


@contextmanager
def open_stream(file: File) -> Iterator[Image.Image]:
    """Opens an image file by Pillow, whose errors are raised as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on files; anything that matters raises
        with Image.open(file, formats=FORMATS) as image:
            yield image


@contextmanager
def as_bad_sample(id: str, where: str) -> Iterator[None]:
    """Raises the errors within as `open_image` does.

    Args:
        id: the sample's name, for a BadSampleError.
        where: the file's name, for an OSError.
    """
    try:
        yield
        return
    except UnusablePixelsError as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = f"it is not an image ({', '.join(NAMES)}), or damaged from its start"
    except FileNotFoundError:
        reason = "there is no such file (a link to nowhere, or removed since the folder was listed)"
    except PermissionError:
        reason = "it may not be read (permission denied)"
    except MissingReaderError:
        raise
    except Image.DecompressionBombError:
        reason = f"it has more pixels than the limit of {MAX_PIXELS:,}"
    except MemoryError:
        raise
    # Pillow's decoders raise anything on damaged bytes: OSError (without a number), SyntaxError,
    # ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise OSError(error.errno, error.strerror, where) from error
        reason = f"it is damaged ({type(error).__name__}: {error})"
    raise BadSampleError(id, reason)


def from_pil(image: Image.Image, channels: int) -> UInt8[Tensor, "{channels} H W"]:
    """Returns a Pillow image as uint8 with 1 channel (luma) or 3 (RGB).

    It is turned upright by its EXIF orientation; transparency is laid over white; 16-bit grey is
    scaled to 8 bits. (Of 16-bit colours Pillow has dropped the low byte: `decode_file` reads those
    by themselves.)

    Raises:
        ValueError: other channels than 1 or 3.
        UnusablePixelsError: more than MAX_PIXELS, or floating-point or 32-bit pixels.
    """
    if channels not in _MODES:
        raise ValueError(f"channels is {channels}; image files give 1 (grey) or 3 (RGB)")
    check_pixels(image)
    image.load()
    if _is_turned(image):  # checked first: Pillow would copy an upright image
        image = _turned(image)
    image, mode = _opaque(_eight_bits(image)), _MODES[channels]
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(pixels.reshape(image.height, image.width, channels)).permute(2, 0, 1)


def _is_plain_jpeg(image: Image.Image, channels: int) -> bool:
    """Returns True if the pixels need no conversion once decoded."""
    wanted = image.mode == _MODES.get(channels)
    return image.format == "JPEG" and wanted and not _is_turned(image)


def _is_turned(image: Image.Image) -> bool:
    """Returns True if the EXIF orientation is other than upright."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except MemoryError:
        raise
    except Exception:  # damaged metadata do not make the pixels unusable
        logger.debug("its metadata are damaged and ignored", exc_info=True)
        return False


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # other metadata than the orientation are damaged
        logger.debug("its metadata are damaged and ignored", exc_info=True)
        return image


def check_pixels(image: Image.Image) -> None:
    """Raises UnusablePixelsError if the header declares more than MAX_PIXELS."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusablePixelsError(
            f"it has {width:,} x {height:,} pixels, more than the limit of {MAX_PIXELS:,}"
        )


def check_status(path: Path | str, most: int = MAX_BYTES) -> None:
    """Raises UnusablePixelsError unless it is a file with content, of at most `most` bytes."""
    status = os.stat(path)
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePixelsError("it is not a file (a folder, pipe or device)")
    if status.st_size == 0:
        raise UnusablePixelsError(_EMPTY)
    if status.st_size > most:
        raise UnusablePixelsError(
            f"it has {status.st_size:,} bytes, more than the limit of {most:,}"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns 16-bit grey scaled to 8 bits, which Pillow's convert would clip; others unchanged."""
    if image.mode == "F":
        raise UnusablePixelsError(
            "its pixels are floating-point, of no agreed range; save it with 8 bits"
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UnusablePixelsError(
            "its pixels are 32-bit, of no agreed range; save it with 8 or 16 bits"
        )
    bytes_HW = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        bytes_HW[values == transparent] = 255
    return Image.fromarray(bytes_HW)


def _opaque(image: Image.Image) -> Image.Image:
    """Returns the image over white where it is transparent."""
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")  # the colours of transparent pixels are garbage
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours).convert("RGB")


def decode_numbers(path: Path, id: str) -> UInt8[Tensor, "H W"]:
    """Returns the numbers in a PNG of palette or grey, such as a mask, which are not colours.

    Raises:
        BadSampleError: it is no such image.
    """
    with open_image(path, f"{id} (its mask)") as image:
        check_pixels(image)
        if image.mode not in ("P", "L"):
            raise UnusablePixelsError(
                f"its mode is {image.mode}; a mask has a number for each pixel (palette or grey)"
            )
        numbers_HW = np.array(image, dtype=np.uint8)
    return torch.from_numpy(numbers_HW)
