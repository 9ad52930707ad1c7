"""Sampled view parameters applied to images: uint8 in, normalised float32 out.

The order is DINO's: box, resize and flip; jitter; grey; blur; solarize; normalise. Pixels are float
from the resize on and clamped to [0, 1] after every operation that can leave it; Pillow rounds to 8
bits after each, which would turn a last-bit difference between devices into a difference of 1/255.

Shape legend: B images · V views · C channels · S side · N rows of a chunk, view-major.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrail.data import colour
from vitrail.data.resample import Taps, resample_one, resample_stacked, taps
from vitrail.data.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParams

# Changes only speed: colours of this many floats at a time stay in a CPU core's cache.
_CHUNK_FLOATS = 2**18

_JITTER: dict[int, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    # operation -> (function, the factor that changes nothing)
    BRIGHTNESS: (colour.brightness, 1.0),
    CONTRAST: (colour.contrast, 1.0),
    SATURATION: (colour.saturation, 1.0),
    HUE: (colour.hue, 0.0),
}


def apply_views(
    images: list[UInt8[Tensor, "C _ _"]] | UInt8[Tensor, "B C H W"],
    params: ViewParams,
    device: torch.device | str,
) -> list[Float[Tensor, "_ C _ _"]]:
    """The views of a batch.

    Args:
        images: of mixed sizes as a list, or of one size as a tensor. Both give the same pixels.
        params: drawn for these images.
        device: where to compute; the same pixels on each to 1e-5.

    Returns:
        Normalised float32 [V*B, C, S, S] per resolution, in the plan's order; view-major rows.
    """
    plan, device = params.plan, torch.device(device)
    assert len(images) == params.box.shape[1]
    assert all(image.shape[0] == len(plan.mean) for image in images)
    mean = torch.tensor(plan.mean, device=device)[:, None, None]
    std = torch.tensor(plan.std, device=device)[:, None, None]
    views, first = [], 0
    with torch.no_grad(), full_precision(device):
        for side, n_views in plan.resolutions:
            of_side = params.of_views(first, n_views)
            x = _crop(images, of_side, side, device)
            for rows in _chunks(x):
                x[rows] = _recolour(x[rows], _rows_of(of_side, rows)).sub_(mean).div_(std)
            views.append(x)
            first += n_views
    return views


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


def _crop(
    images: list[Tensor] | Tensor, params: ViewParams, side: int, device: torch.device
) -> Tensor:
    """The boxes of all views, resized to `side` and flipped, in [0, 1]: [V*B, C, S, S]."""
    n_views, n_images, _ = params.box.shape
    out_length = torch.full((n_views, n_images), side)
    first, unflipped = torch.zeros_like(out_length), torch.zeros_like(params.flip)
    taps_y = _to(device, taps(params.box[..., 2], out_length, first, unflipped, side))
    taps_x = _to(device, taps(params.box[..., 3], out_length, first, params.flip, side))
    if isinstance(images, Tensor):
        boxes = params.box.to(device)
        out = resample_stacked(images.to(device), boxes, taps_y, taps_x)
    else:
        channels = len(params.plan.mean)
        out = torch.empty(n_views, n_images, channels, side, side, device=device)
        for b, image in enumerate(images):
            image = image.to(device)
            for v, (top, left, height, width) in enumerate(params.box[:, b].tolist()):
                box = image[:, top : top + height, left : left + width]
                out[v, b] = resample_one(box, _pick(taps_y, v, b), _pick(taps_x, v, b))
    return out.flatten(0, 1).div_(255).clamp_(0, 1)


def _to(device: torch.device, of: Taps) -> Taps:
    return Taps(of.position.to(device), of.weight.to(device))


def _pick(of: Taps, v: int, b: int) -> Taps:
    return Taps(of.position[v, b], of.weight[v, b])


def _chunks(x: Tensor) -> Iterator[slice]:
    """Rows to recolour together: few on a CPU, all on an accelerator."""
    n_rows, floats = x.shape[0], max(1, x[:1].numel())
    step = max(1, _CHUNK_FLOATS // floats) if x.device.type == "cpu" else max(1, n_rows)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def _rows_of(params: ViewParams, rows: slice) -> dict[str, Tensor]:
    """The colour parameters of rows of the flattened [V*B] batch; they stay on the CPU."""
    names = ("jitter", "factors", "order", "grey", "sigma", "solarize")
    return {name: getattr(params, name).flatten(0, 1)[rows] for name in names}


def _with_factor(
    operation: Callable[[Tensor, Tensor], Tensor], factor: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda y, rows: operation(y, factor[rows].to(y.device))


def _recolour(x: Float[Tensor, "N C S S"], params: dict[str, Tensor]) -> Float[Tensor, "N C S S"]:
    """Jitter, grey, blur and solarize, each on the rows it was drawn for."""

    def change(mask: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        # The masks are on the CPU, so that an accelerator is never waited for.
        rows = mask.nonzero()[:, 0]
        if len(rows):
            there = rows.to(x.device)
            x[there] = operation(x[there], rows)

    factors, order = params["factors"], params["order"]
    for slot in range(order.shape[1]):
        for kind, (operation, neutral) in _JITTER.items():
            factor = factors[:, kind]
            mask = params["jitter"] & (order[:, slot] == kind) & (factor != neutral)
            change(mask, _with_factor(operation, factor))
    change(params["grey"], lambda y, _: colour.grey(y))
    change(params["sigma"] > 0, lambda y, rows: colour.blur(y, params["sigma"][rows]))
    change(params["solarize"], lambda y, _: colour.solarize(y))
    return x
