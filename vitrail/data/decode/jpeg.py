"""JPEGs decoded by simplejpeg, if it is installed and gives the pixels of Pillow.

Both are libjpeg-turbo, each of its own version. A run must not depend on which of them is
installed, so a process compares them once and uses Pillow if they differ.
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
    """Returns the pixels of an intact JPEG, interleaved in memory, or None if Pillow has to decode.

    That is if the file is damaged, or there is no other decoder that agrees with Pillow.

    Args:
        data: the file's bytes.
        mode: Pillow's mode of the file, "RGB" or "L".
    """
    decode = _decoder()
    if decode is None:
        return None
    try:
        pixels_HWC = decode(data, colorspace=_COLORSPACES[mode])
    except ValueError:  # raised for anything unusual, even what Pillow tolerates
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
    """Returns images that change from pixel to pixel, of sizes that are no multiple of a block."""
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
