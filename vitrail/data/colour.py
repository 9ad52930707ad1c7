"""Operations on the colours of a batch of float images in [0, 1], each image with its own factor.

Formulas of torchvision 0.29's v1 transforms on tensors (which are Pillow's without its rounding to
8 bits), except the blur: Pillow's GaussianBlur is three box blurs that approximate a Gaussian; this
is the Gaussian. Both repeat the pixels of the edge.

Shape legend: N images · C channels · H, W an image · K taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "N C H W"]
PerImage = Float[Tensor, " N"]


def luma(x: Images) -> Float[Tensor, "N 1 H W"]:
    """ITU-R 601 luma of RGB; the mean of any other number of channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(x: Images, other: Tensor, factor: PerImage) -> Images:
    """factor * x + (1 - factor) * other, clamped."""
    factor_N111 = factor[:, None, None, None]
    return torch.addcmul(other * (1 - factor_N111), x, factor_N111).clamp_(0, 1)


def brightness(x: Images, factor: PerImage) -> Images:
    """Blends with black."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def contrast(x: Images, factor: PerImage) -> Images:
    """Blends with the image's mean luma."""
    return _blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Images, factor: PerImage) -> Images:
    """Blends RGB images with their luma."""
    return _blend(x, luma(x), factor)


def hue(x: Images, turns: PerImage) -> Images:
    """Turns the hue of RGB images in HSV space.

    HSV to RGB in closed form: channel n of (5, 3, 1) is max - chroma * clamp(min(k, 4 - k), 0, 1)
    with k = (n + 6 hue) mod 6.
    """
    red, green, blue = x.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    inverse = 1 / torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        top == red,
        (green - blue) * inverse,
        torch.where(top == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    sextant += 6 * turns[:, None, None]
    out = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = torch.remainder(sextant + n, 6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(top, chroma, share, value=-1, out=out[:, channel])
    return out.clamp_(0, 1)


def grey(x: Images) -> Images:
    """RGB images without colour."""
    return luma(x).expand_as(x)


def solarize(x: Images) -> Images:
    """Pillow's solarize at threshold 128: 8-bit values from 128 on are inverted, v -> 255 - v.

    That is min(v, 255 - v), which has no jump at the threshold, so devices cannot disagree there.
    """
    return torch.minimum(x, 1 - x)


def blur(x: Images, sigma: PerImage) -> Images:
    """Separable Gaussian cut at 4 sigma, edge pixels repeated. sigma: pixels, > 0, on the CPU."""
    own_reach_N1 = (4 * sigma.double()).ceil().clamp(min=1)[:, None]
    reach = int(own_reach_N1.max())
    offset_K = torch.arange(-reach, reach + 1).double()
    weight_NK = torch.exp(-0.5 * (offset_K / sigma.double()[:, None]) ** 2)
    weight_NK *= offset_K.abs() <= own_reach_N1  # whatever the others in the batch need
    weight_NK = (weight_NK / weight_NK.sum(1, keepdim=True)).float().to(x.device)
    height, width = x.shape[2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    columns = _weighted_sum([padded[:, :, k : k + height] for k in range(2 * reach + 1)], weight_NK)
    rows = [columns[..., k : k + width] for k in range(2 * reach + 1)]
    return _weighted_sum(rows, weight_NK).clamp_(0, 1)


def _weighted_sum(shifted: list[Tensor], weight_NK: Tensor) -> Tensor:
    """The sum over k of weight k times image k. A convolution would run in TF32 on some devices."""
    total = torch.zeros_like(shifted[0], memory_format=torch.contiguous_format)
    for k, image in enumerate(shifted):
        total.addcmul_(image, weight_NK[:, k, None, None, None])
    return total
