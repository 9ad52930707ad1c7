"""Views of files on a CPU: image by image, so that what is worked on stays in a core's cache.

torch's own kernel resizes 8-bit pixels. Only views that were drawn for an operation pay for it, and
a blur is a product of matrices, which is what a core does best.

Shape legend: V views · B images · C channels · H, W an image · S output side · K taps · T a tile ·
N its inputs.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views import colour
from vitrail.data.views.plan import ViewParams

_TILE = 16  # outputs of a blur's product; more multiply more zeros


def apply_native(
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]] | Tensor,
    params: ViewParams,
    out: list[Float[Tensor, "_ B C _ _"]],
) -> None:
    """Writes the views of images of any sizes, on the CPU, into `out`.

    Args:
        params: drawn for these images.
        out: float32 [V, B, C, S, S] per resolution, in the plan's order.
    """
    plan = params.plan
    white = float(torch.iinfo(images[0].dtype).max)
    std = torch.tensor(plan.std)[:, None, None]
    scale, shift = 1 / (white * std), torch.tensor(plan.mean)[:, None, None] / std
    _keep_freed_memory()
    targets = [view_BCSS for of_side in out for view_BCSS in of_side]
    drawn = _as_lists(params)
    for b, image in enumerate(images):
        whole = image[None]
        if image.dtype == torch.uint8:
            whole = whole.contiguous(memory_format=torch.channels_last)  # as torch's kernel reads
        for v, target_BCSS in enumerate(targets):
            view = {name: values[v][b] for name, values in drawn.items()}
            target_1CSS = target_BCSS[b : b + 1]  # planes: colours are worked on one by one
            _crop(whole, view["box"], view["flip"], target_1CSS)
            x = _recolour(target_1CSS, view, white)
            torch.mul(x, scale, out=target_1CSS).sub_(shift)


def _as_lists(params: ViewParams) -> dict[str, list[list[Any]]]:
    return {name: value.tolist() for name, value in vars(params).items() if name != "plan"}


def _crop(image: Tensor, box: list[int], flip: bool, out: Float[Tensor, "1 C S S"]) -> None:
    """Writes a box, resized and flipped: whole numbers of the image's type, held by floats."""
    top, left, height, width = box
    boxed = image[:, :, top : top + height, left : left + width]
    boxed = boxed if image.dtype == torch.uint8 else boxed.float()
    resized = F.interpolate(boxed, tuple(out.shape[2:]), mode="bicubic", antialias=True)
    out.copy_(resized.flip(3) if flip else resized)
    if image.dtype != torch.uint8:
        out.round_().clamp_(0, torch.iinfo(image.dtype).max)


def _recolour(
    x: Float[Tensor, "1 C S S"], view: dict[str, Any], white: float
) -> Float[Tensor, "1 C S S"]:
    """Jitter in the drawn order, grey, blur and solarize, where they were drawn."""
    for kind in view["order"] if view["jitter"] else ():
        operation, neutral = colour.JITTER[kind]
        if view["factors"][kind] != neutral:
            x = operation(x, view["factors"][kind], white)
    if view["grey"]:
        x = colour.grey(x)
    if view["sigma"] > 0:
        x = _blur(x, view["sigma"])
    return colour.solarize(x, white) if view["solarize"] else x


def _blur(x: Float[Tensor, "1 C S S"], sigma: float) -> Float[Tensor, "1 C S S"]:
    """`colour.blur` as products with a band of its matrix, a tile at a time, rows and columns."""
    side = x.shape[-1]
    reach, tile = max(1, math.ceil(4 * sigma)), min(_TILE, side)
    band_TN = _band([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)], tile)
    missing = -side % tile  # the last tile may reach beyond; what comes of that is cut off
    pad = (reach, reach + missing)

    # Overlapping tiles are written out: a product of views of them would go row by row.
    tiles_1CStN = F.pad(x, (*pad, 0, 0), mode="replicate").unfold(3, band_TN.shape[1], tile)
    x = torch.mm(tiles_1CStN.flatten(0, 3), band_TN.T).view(*x.shape[:3], -1)[..., :side]

    tiles_1CtSN = F.pad(x, (0, 0, *pad), mode="replicate").unfold(2, band_TN.shape[1], tile)
    tiles_MNS = tiles_1CtSN.transpose(3, 4).flatten(0, 2)
    x = torch.matmul(band_TN, tiles_MNS).view(1, x.shape[1], -1, side)[:, :, :side]
    return x


def _band(weights: list[float], tile: int) -> Float[Tensor, "T N"]:
    """Row t holds the weights, of sum 1, from column t on."""
    taps, total = len(weights), sum(weights)
    # With one column more each row would begin one place further: so the rows are one long run.
    run = torch.zeros(tile, tile + taps)
    run[:, :taps] = torch.tensor([weight / total for weight in weights])
    return run.flatten()[:-tile].view(tile, -1)


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """glibc gives freed blocks above a size back to the system, and pays for every page when it
    asks again: three times the work of a colour jitter. The size grows to what was freed once, up
    to 32 MB."""
    torch.empty(31 * 2**20, dtype=torch.uint8)
