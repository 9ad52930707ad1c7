"""Gaussian blur, separable, with the pixels of the edge repeated.

Pillow's GaussianBlur is three box blurs that approximate a Gaussian; this is the Gaussian, and its
result is not rounded to whole numbers.

Shape legend: N images · C channels · H, W an image · S side of a square one · K taps · T outputs of
a tile · M inputs of a tile.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.contract import (
    Change,
    Drawn,
    Operation,
    Pixels,
    View,
    check_probability,
    check_range,
)

_TILE = 16  # outputs of a product; more of them multiply more zeros


class Blur(Operation):
    """Blurs with a Gaussian. Drawn: sigma, float32 [N], its standard deviation in pixels."""

    uniforms = 2
    columns = range(30, 32)

    def check(self, view: View) -> None:
        check_probability(view, "blur")
        check_range(view, "blur_sigma")

    def draw(self, view: View, uniforms: Float[Tensor, "N U"]) -> Drawn:
        low, high = view.blur_sigma
        return {"on": uniforms[:, 0] < view.blur, "sigma": low + (high - low) * uniforms[:, 1]}

    def apply(self, pixels: Pixels, drawn: dict[str, Any], white: float) -> Pixels:
        return blur_one(pixels, drawn["sigma"])

    def apply_batched(self, drawn: Drawn, views: Sequence[View]) -> list[Change]:
        if not drawn["on"].any():
            return []
        # One reach for all batches: another number of taps would be compiled anew.
        largest = max(view.blur_sigma[1] for view in views)
        return [Change.where(drawn["on"], _blur, gaussian(drawn["sigma"], largest))]


def _blur(pixels: Pixels, weight_NK: Tensor, _: float) -> Pixels:
    return blur(pixels, weight_NK)


def gaussian(sigma: Float[Tensor, " N"], up_to: float | None = None) -> Float[Tensor, "N K"]:
    """Returns Gaussian weights of the offsets -reach to reach, each cut at its own 4 sigma.

    Args:
        sigma: standard deviations in pixels, above 0, on the CPU.
        up_to: a sigma that gives the reach; by default the largest of `sigma`.
    """
    own_reach_N1 = (4 * sigma.double()).ceil().clamp(min=1)[:, None]
    reach = math.ceil(max(4 * up_to, 1)) if up_to is not None else int(own_reach_N1.max())
    offset_K = torch.arange(-reach, reach + 1).double()
    weight_NK = torch.exp(-0.5 * (offset_K / sigma.double()[:, None]) ** 2)
    weight_NK *= offset_K.abs() <= own_reach_N1  # whatever the others in the batch need
    return (weight_NK / weight_NK.sum(1, keepdim=True)).float()


def blur(x: Float[Tensor, "N C H W"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "N C H W"]:
    """Blurs each image with its own weights, those of `gaussian`."""
    reach = weight.shape[1] // 2
    height, width = x.shape[2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    columns = _weighted_sum([padded[:, :, k : k + height] for k in range(2 * reach + 1)], weight)
    rows = [columns[..., k : k + width] for k in range(2 * reach + 1)]
    return _weighted_sum(rows, weight)


def _weighted_sum(shifted: list[Tensor], weight_NK: Tensor) -> Tensor:
    """Returns the sum over k of weight k times image k."""
    # Not a convolution: on some devices that would run in TF32.
    total = torch.zeros_like(shifted[0], memory_format=torch.contiguous_format)
    for k, image in enumerate(shifted):
        total.addcmul_(image, weight_NK[:, k, None, None, None])
    return total


def blur_one(x: Float[Tensor, "1 C S S"], sigma: float) -> Float[Tensor, "1 C S S"]:
    """Blurs one image on a CPU: products with a band matrix, tile by tile, rows then columns."""
    side = x.shape[-1]
    reach, tile = max(1, math.ceil(4 * sigma)), min(_TILE, side)
    band_TM = _band([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)], tile)
    missing = -side % tile  # the last tile may reach beyond the edge; its outputs there are cut off
    pad = (reach, reach + missing)

    # Overlapping tiles are copied: a product of views of them would go row by row.
    tiles_1CStM = F.pad(x, (*pad, 0, 0), mode="replicate").unfold(3, band_TM.shape[1], tile)
    x = torch.mm(tiles_1CStM.flatten(0, 3), band_TM.T).view(*x.shape[:3], -1)[..., :side]

    tiles_1CtSM = F.pad(x, (0, 0, *pad), mode="replicate").unfold(2, band_TM.shape[1], tile)
    tiles_nMS = tiles_1CtSM.transpose(3, 4).flatten(0, 2)
    x = torch.matmul(band_TM, tiles_nMS).view(1, x.shape[1], -1, side)[:, :, :side]
    return x


def _band(weights: list[float], tile: int) -> Float[Tensor, "T M"]:
    """Returns a matrix whose row t holds the weights, scaled to sum 1, from column t on."""
    taps, total = len(weights), sum(weights)
    # With one column more each row would begin one place further, so the rows are one long run.
    run = torch.zeros(tile, tile + taps)
    run[:, :taps] = torch.tensor([weight / total for weight in weights])
    return run.flatten()[:-tile].view(tile, -1)
