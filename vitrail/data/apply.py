"""Sampled view parameters applied to images: 8 or 16 bits in, normalised float32 out.

One specification, two ways to compute it: image by image on a CPU (`apply_native.py`), or the batch
at once (`apply_batched.py`). The sizes agree to the bit, the colours to 1/255 where a device's last
bit of a quotient decides how a hue is rounded, and everywhere else to float32.

The order is DINO's: box, resize and flip; jitter; grey; blur; solarize; normalise. Up to the blur,
pixels are whole numbers of the image's type, as in the published pipelines, which work on 8 bits.

Shape legend: B images · V views · C channels · S side.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from vitrail.data.apply_batched import crop_batched, recolour_batched
from vitrail.data.apply_native import apply_native
from vitrail.data.views import ViewParams, ViewPlan

Images = (
    Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]]
    | UInt8[Tensor, "B C H W"]
    | UInt16[Tensor, "B C H W"]
)


def apply_views(
    images: Images, params: ViewParams, device: torch.device | str
) -> list[Float[Tensor, "_ C _ _"]]:
    """The views of a batch.

    Args:
        images: of mixed sizes as a list, or of one size as a tensor. Both give the same pixels.
        params: drawn for these images.
        device: where to compute.

    Returns:
        Normalised float32 [V*B, C, S, S] per resolution, in the plan's order; view-major rows.
    """
    return apply_chunks([(images, params)], params.plan, len(images), torch.device(device))


def apply_chunks(
    chunks: Iterable[tuple[Images, ViewParams]], plan: ViewPlan, count: int, device: torch.device
) -> list[Float[Tensor, "_ C _ _"]]:
    """The views of a batch that comes in parts, each let go before the next is asked for.

    Args:
        chunks: images and their parameters. count: B, of all chunks.

    Returns:
        as `apply_views`, rows view-major over the whole batch.
    """
    views = [
        torch.empty(n_views, count, len(plan.mean), side, side, device=device)
        for side, n_views in plan.resolutions
    ]
    start, to_recolour, white = 0, [], 255.0
    with torch.no_grad(), full_precision(device):
        for images, params in chunks:
            assert len(images) == params.box.shape[1]
            assert all(image.shape[0] == len(plan.mean) for image in images)
            out = [view[:, start : start + len(images)] for view in views]
            start, white = start + len(images), float(torch.iinfo(images[0].dtype).max)
            if device.type == "cpu" and not isinstance(images, Tensor):
                apply_native(images, params, out)
            else:
                crop_batched(_moved(images, device), params, out)
                to_recolour.append(params)
            del images  # at their full size they are let go
        assert start == count
        flat = [view.flatten(0, 1) for view in views]
        if to_recolour:
            recolour_batched(flat, _joined(to_recolour), white)
    return flat


def _moved(images: Images, device: torch.device) -> Images:
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]


def _joined(parts: list[ViewParams]) -> ViewParams:
    """The parameters of all images of the parts."""
    names = [name for name in vars(parts[0]) if name != "plan"]
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names
    }
    return replace(parts[0], **tensors)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 products as such: neither autocast nor TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
