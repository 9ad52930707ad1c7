"""Operations on the colours of a batch of images: Pillow's 8-bit arithmetic, in float32.

Pixels are whole numbers from 0 (black) to `white`, 255 or 65535, held by floats, and every
operation but the blur ends in whole numbers again, rounded as Pillow's and torchvision's v1
transforms do: so that views are those of the published pipelines, and of all devices. float32 is
exact for the sums that occur. The blur differs: Pillow's GaussianBlur is three box blurs that
approximate a Gaussian; this is the Gaussian. Both repeat the pixels of the edge.

Every function takes a batch and, for each image, its own factor, or one image and a number. None
compares or selects, which costs a CPU ten times a sum.

Shape legend: N images · C channels · H, W an image · K taps.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION

Images = Float[Tensor, "N C H W"]
Factor = float | Float[Tensor, "N 1 1 1"]
Operation = Callable[[Tensor, Any, float], Tensor]  # of images, their parameters, and white

_LUMA = (19595, 38470, 7471)  # ITU-R 601, in 65536ths, as Pillow's integers
# What is a whole number but for the last bits of a quotient becomes that number on all devices.
_NUDGE = 1e-4
_TINY = 1e-6  # instead of a chroma or white of 0, under numerators that are then 0 too


def luma(x: Images) -> Float[Tensor, "N 1 H W"]:
    """ITU-R 601 luma of RGB; the mean of any other number of channels. Whole numbers."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True).add_(0.5).floor_()
    red, green, blue = x.split(1, dim=1)
    red_weight, green_weight, blue_weight = _LUMA
    total = (red * red_weight).add_(green, alpha=green_weight).add_(blue, alpha=blue_weight)
    return total.mul_(2**-16).add_(0.5).floor_()


def brightness(x: Images, factor: Factor, white: float) -> Images:
    """Blends with black."""
    return (x * factor).floor_().clamp_(max=white)


def contrast(x: Images, factor: Factor, white: float) -> Images:
    """Blends with the image's mean luma."""
    mean_N111 = luma(x).mean((1, 2, 3), keepdim=True).add_(0.5).floor_()
    return torch.lerp(mean_N111, x, factor).clamp_(0, white).floor_()


def saturation(x: Images, factor: Factor, white: float) -> Images:
    """Blends RGB images with their luma."""
    return torch.lerp(luma(x), x, factor).clamp_(0, white).floor_()


def hue(x: Images, turns: Factor, white: float) -> Images:
    """Turns the hue of RGB images in Pillow's HSV, whose hue and saturation are whole numbers.

    In closed form, without the cases of HSV. With m and M the smallest and largest of a pixel's
    R, G, B and c = M - m, its hue is (M - R + G + B - 2m) / 6c turns from red, towards green where
    G > B, else towards blue. A colour at distance d from channel n, on a circle of length 1, has
    m + c clamp(2 - 6d, 0, 1) of it.
    """
    red, green, blue = x.split(1, dim=1)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    chroma = high - low
    sixths = x.sum(1, keepdim=True).sub_(red, alpha=2).sub_(low).add_(chroma)  # M - R + G + B - 2m
    sixths = sixths.copysign_(green - blue).div_(chroma.clamp(min=_TINY))
    whole = torch.rsub(sixths, _NUDGE, alpha=-white / 6).floor_()
    whole.sub_((whole / white).floor_(), alpha=white)
    # torchvision adds in 8 bits, where 256, not 255, is 0 again.
    whole.add_(_truncated(turns, white))
    whole.sub_((whole / (white + 1)).floor_(), alpha=white + 1)
    # Red, green and blue on the circle. A third times 0, 1 and 2 has the same bits on all devices.
    channels_311 = torch.arange(3, device=x.device)[:, None, None] * (1 / 3)
    from_channel = whole.div_(white) - channels_311
    distance = from_channel.sub_(from_channel.round()).abs_()
    share = torch.rsub(distance, 2, alpha=6).clamp_(0, 1)
    saturated = torch.rsub(chroma.div_(high.clamp(min=_TINY)), _NUDGE, alpha=-white).floor_()
    low = torch.addcmul(high, saturated, high, value=-1 / white)
    return torch.lerp(low, high, share).round_()


def _truncated(turns: Factor, white: float) -> Factor:
    return math.trunc(turns * white) if isinstance(turns, float) else (turns * white).trunc()


def grey(x: Images) -> Images:
    """RGB images without colour."""
    return luma(x).expand_as(x)


def solarize(x: Images, white: float) -> Images:
    """Pillow's solarize at threshold 128: 8-bit values from 128 on are inverted, v -> 255 - v.

    That is min(v, 255 - v), which has no jump at the threshold, so devices cannot disagree there.
    """
    return torch.minimum(x, white - x)


def blur(x: Images, weight: Float[Tensor, "N K"]) -> Images:
    """Separable: each image with its own weights, of `gaussian`. Edge pixels are repeated."""
    reach = weight.shape[1] // 2
    height, width = x.shape[2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    columns = _weighted_sum([padded[:, :, k : k + height] for k in range(2 * reach + 1)], weight)
    rows = [columns[..., k : k + width] for k in range(2 * reach + 1)]
    return _weighted_sum(rows, weight)


def gaussian(sigma: Float[Tensor, " N"], up_to: float | None = None) -> Float[Tensor, "N K"]:
    """Gaussians of the offsets -reach to reach, each cut at its own 4 sigma. On the CPU.

    Args:
        sigma: pixels, > 0. up_to: a sigma that gives the reach; the largest, where not given.
    """
    own_reach_N1 = (4 * sigma.double()).ceil().clamp(min=1)[:, None]
    reach = math.ceil(max(4 * up_to, 1)) if up_to is not None else int(own_reach_N1.max())
    offset_K = torch.arange(-reach, reach + 1).double()
    weight_NK = torch.exp(-0.5 * (offset_K / sigma.double()[:, None]) ** 2)
    weight_NK *= offset_K.abs() <= own_reach_N1  # whatever the others in the batch need
    return (weight_NK / weight_NK.sum(1, keepdim=True)).float()


def _weighted_sum(shifted: list[Tensor], weight_NK: Tensor) -> Tensor:
    """The sum over k of weight k times image k. A convolution would run in TF32 on some devices."""
    total = torch.zeros_like(shifted[0], memory_format=torch.contiguous_format)
    for k, image in enumerate(shifted):
        total.addcmul_(image, weight_NK[:, k, None, None, None])
    return total


JITTER: dict[int, tuple[Operation, float]] = {
    # operation -> (function, the factor that changes nothing)
    BRIGHTNESS: (brightness, 1.0),
    CONTRAST: (contrast, 1.0),
    SATURATION: (saturation, 1.0),
    HUE: (hue, 0.0),
}
