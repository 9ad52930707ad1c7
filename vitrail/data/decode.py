"""Image files to uint8 tensors, and the guard in front: whatever is wrong with a file is named."""

import errno
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
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.data.batch import BadSampleError

logger = logging.getLogger(__name__)

# Pillow's own line between plain and suspicious: 268 MB once decoded to RGB. Photographs stay below
# (a 61-megapixel full-frame camera is at two thirds); a 30,000 x 30,000 bomb is ten times above.
MAX_PIXELS = 89_478_485

# Only these decoders are ever given a file, whatever its name says.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


# The machine's fault, not the file's: a failing disk or network, too many open files, no memory.
# They pass, and a quarantine does not.
MACHINE_ERRNOS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnusablePixelsError(ValueError):
    """An image that is whole, but not to be used; the message is the reason in plain words."""


def decode_file(
    path: Path | str, channels: int, id: str | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """Decodes an image file, as `from_pil` describes. Of several frames the first is taken.

    Raises:
        BadSampleError, OSError, MemoryError: as `open_image`.
    """
    with open_image(path, str(path) if id is None else id) as image:
        pixels_CHW = from_pil(image, channels)
    return pixels_CHW


@contextmanager
def open_image(path: Path | str, id: str) -> Iterator[Image.Image]:
    """An image file, opened for what is done within; whatever that meets is told in plain words.

    Of the pixels nothing is decoded yet: `check_pixels` comes before them.

    Raises:
        BadSampleError: with `id` and the reason.
        OSError, MemoryError: the machine failed (MACHINE_ERRNOS); of the file nothing is known.
    """
    try:
        _check_status(path)
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on files; what matters raises
            with Image.open(file, formats=FORMATS) as image:
                yield image
        return
    except UnusablePixelsError as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = "it is not an image (JPEG, PNG, WebP, BMP, GIF, TIFF), or damaged from its start"
    except FileNotFoundError:
        reason = "there is no such file (a link to nowhere, or removed since the folder was listed)"
    except PermissionError:
        reason = "it may not be read (permission denied)"
    except Image.DecompressionBombError:
        reason = f"it has more pixels than the limit of {MAX_PIXELS:,}"
    except MemoryError:
        raise
    # Pillow's decoders meet damaged bytes with whatever they trip over: OSError (without a number),
    # SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        reason = f"it is damaged ({type(error).__name__}: {error})"
    raise BadSampleError(id, reason)


def from_pil(image: Image.Image, channels: int) -> UInt8[Tensor, "{channels} H W"]:
    """A Pillow image as uint8 with 1 channel (luma) or 3 (RGB).

    Upright as its EXIF orientation says; transparency over white; 16-bit grey scaled to 8 bits
    (of 16-bit colours Pillow has kept the high byte).

    Raises:
        UnusablePixelsError: more than MAX_PIXELS, or floating-point or 32-bit pixels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; image files give 1 (grey) or 3 (RGB)")
    check_pixels(image)
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # damaged metadata say nothing of the pixels
        logger.debug("its metadata are damaged and ignored", exc_info=True)
    image = _opaque(_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    pixels_HWC = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def check_pixels(image: Image.Image) -> None:
    """UnusablePixelsError where there are more than MAX_PIXELS, by what the header says."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusablePixelsError(
            f"it has {width:,} x {height:,} pixels, more than the limit of {MAX_PIXELS:,}"
        )


def _check_status(path: Path | str) -> None:
    status = os.stat(path)
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePixelsError("it is not a file (a folder, pipe or device)")
    if status.st_size == 0:
        raise UnusablePixelsError("the file is empty")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, where Pillow's own convert would clip it. Others unchanged."""
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
    """Over white where transparent: the colours of transparent pixels are garbage."""
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours).convert("RGB")
