"""JPEGs by simplejpeg, where it is installed and gives the pixels of Pillow.

Both are libjpeg-turbo, each of its own version. A run must not depend on which of the two is there:
so a process compares them once, and takes Pillow where they differ.
"""

import io
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

logger = logging.getLogger(__name__)

_COLORSPACES = {"RGB": "RGB", "L": "GRAY"}  # by Pillow's mode


def decode_whole(data: bytes, mode: str) -> UInt8[Tensor, "C H W"] | None:
    """The pixels of an intact JPEG whose own mode is "RGB" or "L", interleaved in memory.

    None where Pillow is to decode it: it is damaged, or there is no decoder that agrees with it.
    """
    decode = _decoder()
    if decode is None:
        return None
    try:
        pixels_HWC = decode(data, colorspace=_COLORSPACES[mode])
    except ValueError:  # of all that is unusual, also of what Pillow forgives
        return None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


@lru_cache(maxsize=1)
def _decoder() -> Callable[..., Any] | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    if all(_agrees(decode_jpeg, image) for image in _samples()):
        return decode_jpeg
    logger.warning("simplejpeg gives other pixels than Pillow here, which decodes instead")
    return None


def _samples() -> list[Image.Image]:
    """Colours that change from pixel to pixel, in sizes that are no multiple of a JPEG's blocks."""
    y, x = np.mgrid[0:67, 0:101]
    waves = [127 + 120 * np.sin(x * a + y * b) for a, b in ((0.3, 0.1), (0.07, 0.9), (1.3, 1.7))]
    colours = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    return [colours, colours.convert("L")]


def _agrees(decode: Callable[..., Any], image: Image.Image) -> bool:
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, **options)
        with Image.open(file) as opened:
            theirs = np.asarray(opened)
        ours = decode(file.getvalue(), colorspace=_COLORSPACES[image.mode])
        if not np.array_equal(ours.reshape(theirs.shape), theirs):
            return False
    return True
