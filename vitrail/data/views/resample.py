"""Antialiased resampling as two matrix products Wy · I · Wxᵀ, which crop and flip too.

The filters are Pillow's BICUBIC (Keys 1981, a = -1/2) and BILINEAR (a triangle). Their support
grows with the scale when shrinking and is clipped to the box, where the weights are normalised
again. There are two arithmetics.

*Rounded*, for the views of 8-bit images: that of torch's `interpolate(..., antialias=True)` on
uint8. Weights are 16-bit integers, and each of the two passes, along the rows first, ends in 8
bits. Here float32 holds the integers, and its sums are exact below 2^24, so a GPU, a batch of
images and torch's own kernel give the same bits. (Where a box shrinks more than 4 times the sums
grow longer: about one value in 10,000 may be off by 1.) Pillow's weights have 22 bits, which moves
up to 2 % of the values, by 1. Pillow 13 resizes boxes along the columns first that shrink more in
height than in width, and what is rounded and clamped between the passes then differs: by 1 on
smooth images, by up to 25 of 255 on noise (bicubic). tests/data/views/test_resample.py measures it.

*Plain* floats, for evaluation and 16-bit images: nothing is rounded, and overshoot is clamped once.

Shape legend: B images · V views · C channels · H, W an image · h, w a box · S output side · K taps.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from torch import Tensor

from vitrail.data.views.preparation import Interpolation

_STRIP = 1024  # rows of an image turned to float at a time; bounds the memory of a huge one


class Taps(NamedTuple):
    """The pixels of a box that each output pixel is a weighted sum of.

    Attributes:
        position: int64, -1 for none.
        weight: float, of sum 1 over K; 0 for none.
    """

    position: Int[Tensor, "*N S K"]
    weight: Float[Tensor, "*N S K"]


def taps(
    length: Int[Tensor, "*N"],
    out_length: Int[Tensor, "*N"],
    first: Int[Tensor, "*N"],
    flip: Bool[Tensor, "*N"],
    count: int,
    interpolation: Interpolation = "bicubic",
) -> Taps:
    """Returns the taps of output pixels [first, first + count), with float64 weights.

    Computed in float64: the distance of a tap is the sum of an exact integer and a small fraction,
    so the weights are right for images of any size.

    Args:
        length: pixels of the box along this axis.
        out_length: pixels that it is resized to.
        first: the first output pixel that is wanted.
        flip: true where the wanted output pixels are mirrored.
        count: S, the number of output pixels that are wanted.
        interpolation: the filter.
    """
    reach = _reach(length, out_length)
    return _taps64(length, out_length, first, flip, count, reach, interpolation)


def _reach(length: Tensor, out_length: Tensor) -> int:
    """Returns taps on each side of an output pixel's centre, enough for all; waits for a device."""
    if not length.numel():
        return 0
    return math.ceil(2 * (length / out_length.double()).clamp(min=1).max().item())


def _taps64(
    length: Tensor,
    out_length: Tensor,
    first: Tensor,
    flip: Tensor,
    count: int,
    reach: int,
    interpolation: Interpolation,
) -> Taps:
    scale_N1 = (length / out_length.double())[..., None]
    out_NS = first[..., None] + torch.arange(count, device=length.device)
    out_NS = torch.where(flip[..., None], first[..., None] * 2 + count - 1 - out_NS, out_NS)
    center_NS = (out_NS + 0.5) * scale_N1
    base_NS = center_NS.floor()
    filter_scale_N1 = scale_N1.clamp(min=1)
    offset_K = torch.arange(-reach, reach + 1, device=length.device)
    distance_NSK = (offset_K + 0.5) - (center_NS - base_NS)[..., None]
    weight_NSK = _FILTERS[interpolation](distance_NSK / filter_scale_N1[..., None])
    position_NSK = base_NS.long()[..., None] + offset_K
    inside_NSK = (position_NSK >= 0) & (position_NSK < length[..., None, None])
    weight_NSK = weight_NSK * inside_NSK
    weight_NSK = weight_NSK / weight_NSK.sum(-1, keepdim=True)
    return Taps(torch.where(inside_NSK, position_NSK, -1), weight_NSK)


def _bicubic(x: Tensor) -> Tensor:
    """Returns Keys' cubic convolution kernel with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _bilinear(x: Tensor) -> Tensor:
    """Returns the triangle of width 2."""
    return (1 - x.abs()).clamp(min=0)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}


def dense(position: Tensor, weight: Tensor, width: int) -> Float[Tensor, "*N S W"]:
    """Returns taps as rows of a matrix over `width` pixels."""
    # Column 0 collects the taps of no pixel.
    rows = weight.new_zeros(*weight.shape[:-1], width + 1)
    return rows.scatter_(-1, position + 1, weight)[..., 1:]


def resample_one(
    image: UInt8[Tensor, "C h w"] | UInt16[Tensor, "C h w"],
    taps_y: Taps,
    taps_x: Taps,
) -> Float[Tensor, "C S S2"]:
    """Returns one box of one image, in float32; the taps are [S, K] and on the image's device."""
    _, height, width = image.shape
    wx_wS = dense(*taps_x, width).float().T
    # A product needs planes: images of files come interleaved.
    planes = (strip.float().contiguous() for strip in image.split(_STRIP, dim=1))
    strips = [strip @ wx_wS for strip in planes]
    rows_ChS = strips[0] if len(strips) == 1 else torch.cat(strips, dim=1)
    return dense(*taps_y, height).float() @ rows_ChS


def resample_one_rounded(
    image: UInt8[Tensor, "C h w"], taps_y: Taps, taps_x: Taps, largest: tuple[float, float]
) -> Float[Tensor, "C S S2"]:
    """Returns one box of one image in the rounded arithmetic: integers in [0, 255], in float32.

    The sums are float64, so they are exact however much the box shrinks.

    Args:
        image: the pixels that the taps refer to.
        taps_y: along the columns.
        taps_x: along the rows.
        largest: the largest weights along both, of the whole resized image.
    """
    _, height, width = image.shape
    y_hS, unit_y = integer_weights(taps_y.weight, image.new_tensor(largest[0], dtype=torch.double))
    x_wS, unit_x = integer_weights(taps_x.weight, image.new_tensor(largest[1], dtype=torch.double))
    wx_wS, wy_Sh = dense(taps_x.position, x_wS, width).T, dense(taps_y.position, y_hS, height)
    planes = (strip.double().contiguous() for strip in image.split(_STRIP, dim=1))
    rows_ChS = torch.cat([_eight_bits(strip @ wx_wS, unit_x) for strip in planes], dim=1)
    return _eight_bits(wy_Sh @ rows_ChS, unit_y).float()


def _eight_bits(sums: Tensor, unit: Tensor) -> Tensor:
    return (sums / unit + 0.5).floor_().clamp_(0, 255)


def integer_weights(
    weight: Float[Tensor, "*N S K"], largest: Float[Tensor, "*N"]
) -> tuple[Float[Tensor, "*N S K"], Float[Tensor, "*N"]]:
    """Returns the rounded arithmetic's integer weights, and the integer that stands for 1.

    Args:
        weight: of taps.
        largest: the largest weight of the whole resized box.
    """
    # As many bits as fit 16 with a sign; then rounded away from 0.
    bits = torch.log2((2**15 - 0.5) / largest).ceil().sub(1).clamp(0, 22)
    unit = torch.exp2(bits)
    weight = weight * unit[..., None, None]
    return torch.trunc(weight + torch.copysign(torch.full_like(weight, 0.5), weight)), unit


class Boxes(NamedTuple):
    """V boxes of each of B images.

    Attributes:
        corner: int64, (top, left) in pixels.
        size: int64, (height, width) in pixels.
        flip: true where the result is mirrored left to right.
        reach: taps on each side of an output pixel's centre; a number of the host, since reading
            it from a device would wait for that.
        interpolation: the filter.
    """

    corner: Int[Tensor, "V B 2"]
    size: Int[Tensor, "V B 2"]
    flip: Bool[Tensor, "V B"]
    reach: int
    interpolation: Interpolation = "bicubic"


def resample_boxes(
    images: UInt8[Tensor, "B C H W"] | UInt16[Tensor, "B C H W"], boxes: Boxes, side: int
) -> Float[Tensor, "V B C S S"]:
    """Returns all boxes of a stack of images, resized to a square by two batched products.

    Pixels outside the boxes do not count, so images of mixed sizes may be padded.

    Args:
        images: B of them, on any device.
        boxes: on the same device.
        side: S, in pixels.

    Returns:
        float32: integers in [0, 255] of uint8 images; of uint16 ones values about [0, 65535].
    """
    n_images, channels, height, width = images.shape
    n_views = boxes.flip.shape[0]
    y, x = (_side_weights(boxes, axis, side, images.dtype) for axis in (0, 1))

    # The views of an image share one product with Wx, in which their columns are side by side.
    wx_BVSW = dense(x.position, x.weight, width).transpose(0, 1)
    wx_BWN = wx_BVSW.reshape(n_images, n_views * side, width).transpose(1, 2)
    values_BMW = images.reshape(n_images, channels * height, width).float().sub_(x.offset)
    rows_BCHVS = (values_BMW @ wx_BWN).view(n_images, channels, height, n_views, side)
    rows_VBHCS = rows_BCHVS.permute(3, 0, 2, 1, 4)
    rows_VBHCS = x.finished(rows_VBHCS, x.total[:, :, None, None, :], x.unit[..., None, None, None])
    rows_VBHN = rows_VBHCS.sub_(y.offset).reshape(n_views, n_images, height, channels * side)
    out_VBSN = dense(y.position, y.weight, height) @ rows_VBHN
    out_VBSN = y.finished(out_VBSN, y.total[..., None], y.unit[..., None, None])
    return out_VBSN.view(n_views, n_images, side, channels, side).transpose(2, 3)


class _Weights(NamedTuple):
    """Taps of one axis, counted from the image's edge.

    In the rounded arithmetic weights are integers, and `offset` is subtracted from the pixels,
    which keeps the sums small.

    Attributes:
        position: int64, -1 for none.
        weight: float32; integers when rounded.
        total: the sum of the weights times `offset`, which is added to the sums again.
        unit: the integer that stands for a weight of 1.
        offset: subtracted from the pixels; 0 in the plain arithmetic.
    """

    position: Int[Tensor, "V B S K"]
    weight: Float[Tensor, "V B S K"]
    total: Float[Tensor, "V B S"]
    unit: Float[Tensor, "V B"]
    offset: float

    def finished(self, sums: Tensor, total: Tensor, unit: Tensor) -> Tensor:
        """Returns the sums of a pass as pixel values."""
        if self.offset == 0:
            return sums
        return ((sums + total) / unit + 0.5).floor_().clamp_(0, 255)


def _side_weights(boxes: Boxes, axis: int, side: int, dtype: torch.dtype) -> _Weights:
    size, first = boxes.size[..., axis], boxes.corner[..., axis, None, None]
    zero, out = torch.zeros_like(size), torch.full_like(size, side)
    flip = boxes.flip if axis == 1 else torch.zeros_like(boxes.flip)
    position, weight = _taps64(size, out, zero, flip, side, boxes.reach, boxes.interpolation)
    position = torch.where(position < 0, -1, position + first)
    if dtype != torch.uint8:
        total = weight.new_zeros(weight.shape[:-1])
        return _Weights(position, weight.float(), total.float(), total[..., 0].float(), 0.0)
    weight, unit = integer_weights(weight, weight.amax((-2, -1)))
    total = 128 * weight.sum(-1)
    return _Weights(position, weight.float(), total.float(), unit.float(), 128.0)
