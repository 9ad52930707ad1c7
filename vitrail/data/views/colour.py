"""Operations on the colours of a batch of images: Pillow's 8-bit arithmetic, in float32.

Pixels are whole numbers from 0 (black) to `white`, 255 or 65535, held by floats. Every operation
ends in whole numbers again, rounded as Pillow's and torchvision's v1 transforms do. Grey and
solarize are theirs to the bit; brightness, contrast and saturation but for one value in 10,000; of
hue, 0.2 % of the values on noise and 0.5 % on smooth images are off, by up to 7 of 255, since one
step of Pillow's 8-bit hue is 6 of 255. tests/data/views/test_apply.py measures it. float32 is exact
for the sums that occur.

Every function takes a batch and one factor an image, or one image and a number. None compares or
selects, which costs a CPU ten times a sum.

Shape legend: N images · C channels · H, W an image.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "N C H W"]
Factor = float | Float[Tensor, "N 1 1 1"]

_LUMA = (19595, 38470, 7471)  # ITU-R 601, in 65536ths, as Pillow's integers
_NUDGE = 1e-4  # makes a quotient that is whole but for its last bits whole on all devices
_TINY = 1e-6  # instead of a chroma or white of 0, under numerators that are then 0 too


def luma(x: Images) -> Float[Tensor, "N 1 H W"]:
    """Returns the ITU-R 601 luma of RGB, the mean of any other number of channels; whole."""
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
    """Returns RGB images without colour: their luma in all channels."""
    return luma(x).expand_as(x)


def solarize(x: Images, white: float) -> Images:
    """Inverts the values from 128 on (of 8 bits), v -> 255 - v: Pillow's solarize, threshold 128.

    That is min(v, 255 - v), which has no jump at the threshold, so devices cannot disagree there.
    """
    return torch.minimum(x, white - x)
