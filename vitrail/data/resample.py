"""Antialiased bicubic resampling as two matrix products Wy · I · Wxᵀ, which crop and flip too.

The filter is Pillow's BICUBIC (Keys 1981, a = -1/2; its support grows with the scale when shrinking
and is clipped to the box, where the weights are normalised again). Departures from Pillow: nothing
is rounded to 8 bits, neither between the two products nor after them, so that all devices agree to
1e-5; and overshoot is clamped once, after both.

Shape legend: B images · V views · C channels · H, W an image · h, w a box · S output side · K taps.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_STRIP = 1024  # rows of an image turned to float at a time; bounds the memory of a huge one


class Taps(NamedTuple):
    """The pixels of the box that each output pixel is a sum of. Position -1: none, of weight 0."""

    position: Int[Tensor, "*N S K"]
    weight: Float[Tensor, "*N S K"]


def taps(
    length: Int[Tensor, "*N"],
    out_length: Int[Tensor, "*N"],
    first: Int[Tensor, "*N"],
    flip: Bool[Tensor, "*N"],
    count: int,
) -> Taps:
    """The taps of output pixels [first, first + count) when `length` pixels become `out_length`.

    Computed on the CPU, where float64 exists: the distance of a tap is the sum of an exact integer
    and a small fraction, so that the float32 weights hold for images of any size.
    """
    scale_N1 = (length / out_length.double())[..., None]
    out_NS = first[..., None] + torch.arange(count)
    out_NS = torch.where(flip[..., None], first[..., None] * 2 + count - 1 - out_NS, out_NS)
    center_NS = (out_NS + 0.5) * scale_N1
    base_NS = center_NS.floor()
    filter_scale_N1 = scale_N1.clamp(min=1)
    reach = math.ceil(2 * filter_scale_N1.max().item()) if length.numel() else 0
    offset_K = torch.arange(-reach, reach + 1)
    distance_NSK = (offset_K + 0.5) - (center_NS - base_NS)[..., None]
    weight_NSK = _bicubic((distance_NSK / filter_scale_N1[..., None]).float())
    position_NSK = base_NS.long()[..., None] + offset_K
    inside_NSK = (position_NSK >= 0) & (position_NSK < length[..., None, None])
    weight_NSK = weight_NSK * inside_NSK
    weight_NSK = weight_NSK / weight_NSK.sum(-1, keepdim=True)
    return Taps(torch.where(inside_NSK, position_NSK, -1), weight_NSK)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def dense(position: Tensor, weight: Tensor, width: int) -> Float[Tensor, "*N S W"]:
    """Taps as rows of a matrix over `width` pixels. Column 0 collects the taps outside."""
    rows = weight.new_zeros(*weight.shape[:-1], width + 1)
    return rows.scatter_(-1, position + 1, weight)[..., 1:]


def resample_one(
    image: UInt8[Tensor, "C h w"],
    taps_y: Taps,
    taps_x: Taps,
) -> Float[Tensor, "C S S2"]:
    """One box of one image; the taps are of shape [S, K] and on the image's device."""
    _, height, width = image.shape
    wx_wS = dense(*taps_x, width).T
    strips = [strip.float() @ wx_wS for strip in image.split(_STRIP, dim=1)]
    rows_ChS = strips[0] if len(strips) == 1 else torch.cat(strips, dim=1)
    return dense(*taps_y, height) @ rows_ChS


def resample_stacked(
    images: UInt8[Tensor, "B C H W"],
    boxes: Int[Tensor, "V B 4"],
    taps_y: Taps,
    taps_x: Taps,
) -> Float[Tensor, "V B C S S"]:
    """All boxes of images of one size; the taps are of shape [V, B, S, K]. Two batched products."""
    n_images, channels, height, width = images.shape
    n_views, _, side, _ = taps_x.weight.shape
    top, left = boxes[..., 0, None, None], boxes[..., 1, None, None]
    x = Taps(torch.where(taps_x.position < 0, -1, taps_x.position + left), taps_x.weight)
    y = Taps(torch.where(taps_y.position < 0, -1, taps_y.position + top), taps_y.weight)

    # The views of an image share its one product with Wx: their columns stand side by side.
    wx_BVSW = dense(*x, width).transpose(0, 1)
    wx_BWN = wx_BVSW.reshape(n_images, n_views * side, width).transpose(1, 2)
    rows_BMN = images.reshape(n_images, channels * height, width).float() @ wx_BWN
    rows_BCHVS = rows_BMN.view(n_images, channels, height, n_views, side)
    rows_VBHN = rows_BCHVS.permute(3, 0, 2, 1, 4).reshape(n_views, n_images, height, -1)
    out_VBSN = dense(*y, height) @ rows_VBHN
    return out_VBSN.view(n_views, n_images, side, channels, side).transpose(2, 3)
