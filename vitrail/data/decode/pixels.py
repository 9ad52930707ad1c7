"""Arrays of whole numbers as images: channels, bits, alpha, orientation.

Shape legend: C channels · H, W an image.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8, UInt16
from torch import Tensor

from vitrail.data.decode.image import MAX_PIXELS, UnusablePixelsError

Bits = Literal[8, 16]

ADAPTABLE = (1, 3)  # channels that are converted into each other; other counts stay as they are
LUMA = (19595, 38470, 7471)  # / 65536: ITU-R 601, as Pillow's convert("L")

# EXIF's orientation: (transpose, flip top to bottom, flip left to right), in this order.
UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def as_image(
    pixels_CHW: np.ndarray, channels: int, bits: Bits
) -> UInt8[Tensor, "{channels} H W"] | UInt16[Tensor, "{channels} H W"]:
    """Returns a copy of an array [C, H, W] of uint8 or uint16, with other channels and bits.

    Args:
        pixels_CHW: uint8 or uint16.
        channels: of the result; grey becomes RGB, or RGB grey, to fit it.
        bits: of the result, 8 or 16.

    Raises:
        UnusablePixelsError: other numbers, or a channel count that cannot be converted.
    """
    check_numbers(pixels_CHW.dtype)
    own = len(pixels_CHW)
    if own == 1 and channels == 3:
        pixels_CHW = np.broadcast_to(pixels_CHW, (3, *pixels_CHW.shape[1:]))
    elif own == 3 and channels == 1:
        pixels_CHW = _luma(pixels_CHW)
    elif own != channels:
        raise UnusablePixelsError(
            f"it has {own} channels, and {channels} are asked for; open the data with "
            f"channels={own}, or leave such files out"
        )
    wanted = np.uint8 if bits == 8 else np.uint16
    if pixels_CHW.dtype.itemsize * 8 == bits:
        return torch.from_numpy(np.array(pixels_CHW, dtype=wanted, order="C"))
    if bits == 16:
        return torch.from_numpy(pixels_CHW.astype(np.uint16, order="C") * np.uint16(257))
    # (v * 255 + 32767) // 65535, in 32 bits
    wide_CHW = pixels_CHW.astype(np.uint32, order="C")
    return torch.from_numpy(((wide_CHW * 255 + 32767) // 65535).astype(np.uint8))


def check_numbers(dtype: np.dtype) -> None:
    """Raises UnusablePixelsError unless the type is uint8 or uint16, in any byte order."""
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return
    if dtype.kind == "f":
        raise UnusablePixelsError(
            f"its pixels are floating-point ({dtype}), of no agreed range; map your range to whole "
            "numbers, as (x.clip(0, 1) * 65535).round().astype('uint16') does for 0 to 1"
        )
    raise UnusablePixelsError(f"its pixels are {dtype}; save them as uint8 or uint16")


def channel_axis(shape: Sequence[int], *candidates: Collection[int]) -> int | None:
    """Returns the axis of three that holds the channels, 0 or 2, or None if that is ambiguous.

    Args:
        shape: of three axes.
        candidates: counts that the channels may have, the likelier ones first.
    """
    first, last = shape[0], shape[2]
    for counts in candidates:
        if (first in counts) != (last in counts):
            return 0 if first in counts else 2
        if first in counts:
            return None
    return None


def channel_counts(channels: int) -> tuple[tuple[int, ...], ...]:
    """Returns the candidates of `channel_axis` for a result of `channels` channels."""
    return ((channels,), ADAPTABLE) if channels in ADAPTABLE else ((channels,),)


def check_size(height: int, width: int) -> None:
    """Raises UnusablePixelsError for no pixels or more than MAX_PIXELS."""
    if not 0 < height * width <= MAX_PIXELS:
        limit = f"more than the limit of {MAX_PIXELS:,}" if height * width else "none"
        raise UnusablePixelsError(f"it has {width:,} x {height:,} pixels, {limit}")


def _luma(pixels_3HW: np.ndarray) -> np.ndarray:
    summed_HW = sum(
        plane.astype(np.uint32) * weight for plane, weight in zip(pixels_3HW, LUMA, strict=True)
    )
    return ((summed_HW + 32768) >> 16).astype(pixels_3HW.dtype)[None]


def over_white(pixels_CHW: np.ndarray, premultiplied: bool) -> np.ndarray:
    """Returns the colours over white; the last channel is alpha."""
    top = np.iinfo(pixels_CHW.dtype).max
    colours_CHW, alpha_HW = pixels_CHW[:-1].astype(np.float64), pixels_CHW[-1] / top
    if not premultiplied:
        colours_CHW = colours_CHW * alpha_HW
    over_CHW = colours_CHW + top * (1 - alpha_HW)
    return over_CHW.round().clip(0, top).astype(pixels_CHW.dtype)


def upright(pixels_CHW: np.ndarray, orientation: Any) -> np.ndarray:
    """Returns the pixels turned upright, by EXIF's orientation; None or unknown: as they are."""
    transpose, vertically, horizontally = UPRIGHT.get(orientation, (False, False, False))
    if transpose:
        pixels_CHW = pixels_CHW.transpose(0, 2, 1)
    pixels_CHW = pixels_CHW[:, ::-1] if vertically else pixels_CHW
    return pixels_CHW[:, :, ::-1] if horizontally else pixels_CHW
