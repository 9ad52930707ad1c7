"""Views on a CPU: image by image, so the pixels that are worked on stay in a core's cache.

torch's own kernel resizes 8-bit pixels. Only views that were drawn for an operation pay for it.

Shape legend: V views · B images · C channels · H, W an image · S output side.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.plan import ViewParams


def apply_native(
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]] | Tensor,
    params: ViewParams,
    out: list[Float[Tensor, "_ B C _ _"]],
) -> None:
    """Writes the views of images of any sizes, on the CPU, into `out`.

    Args:
        images: B of them, of one type.
        params: drawn for these images.
        out: float32 [V, B, C, S, S] per resolution, in the plan's order.
    """
    plan, operations = params.plan, params.plan.operations
    white = float(torch.iinfo(images[0].dtype).max)
    std = torch.tensor(plan.std)[:, None, None]
    scale, shift = 1 / (white * std), torch.tensor(plan.mean)[:, None, None] / std
    _keep_freed_memory()
    targets = [view_BCSS for of_side in out for view_BCSS in of_side]
    boxes, flips = params.box.tolist(), params.flip.tolist()
    drawn = {name: _as_lists(params.operations[name]) for name in operations}
    for b, image in enumerate(images):
        whole = image[None]
        if image.dtype == torch.uint8:
            whole = whole.contiguous(memory_format=torch.channels_last)  # as torch's kernel reads
        for v, target_BCSS in enumerate(targets):
            target_1CSS = target_BCSS[b : b + 1]  # planes: colours are worked on one by one
            _crop(whole, boxes[v][b], flips[v][b], plan.interpolation, target_1CSS)
            x = target_1CSS
            for name, operation in operations.items():
                if drawn[name]["on"][v][b]:
                    of_view = {key: values[v][b] for key, values in drawn[name].items()}
                    x = operation.apply(x, of_view, white)
            torch.mul(x, scale, out=target_1CSS).sub_(shift)


def _as_lists(drawn: dict[str, Tensor]) -> dict[str, list[list[Any]]]:
    return {name: value.tolist() for name, value in drawn.items()}


def _crop(
    image: Tensor, box: list[int], flip: bool, mode: str, out: Float[Tensor, "1 C S S"]
) -> None:
    """Writes a box, resized and flipped: whole numbers of the image's type, held by floats."""
    top, left, height, width = box
    boxed = image[:, :, top : top + height, left : left + width]
    boxed = boxed if image.dtype == torch.uint8 else boxed.float()
    resized = F.interpolate(boxed, tuple(out.shape[2:]), mode=mode, antialias=True)
    out.copy_(resized.flip(3) if flip else resized)
    if image.dtype != torch.uint8:
        out.round_().clamp_(0, torch.iinfo(image.dtype).max)


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Raises the size up to which glibc keeps freed blocks, by freeing one of 31 MB.

    It gives larger ones back to the system and pays for every page when it asks again: three times
    the work of a colour jitter. The size grows to that of a freed block, up to 32 MB.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
