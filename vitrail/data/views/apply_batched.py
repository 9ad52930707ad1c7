"""Views of a batch at once: on an accelerator, and of small images in memory on a CPU.

Crop, resize and flip are two products; an operation works on all rows that it was drawn for, each
row with its own parameters. The host knows which rows these are, so it never waits for an
accelerator, and sends them in one copy.

Shape legend: V views · B images · C channels · H, W an image · S output side · N rows, view-major.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from vitrail.data.views.contract import Change, Kernel
from vitrail.data.views.plan import ViewParams
from vitrail.data.views.resample import Boxes, resample_boxes

logger = logging.getLogger(__name__)

# Floats recoloured at a time on a CPU, which stay in a core's cache; only speed depends on it.
_CHUNK_FLOATS = 2**18

# Values of padded images turned to float at a time, 256 MB.
_STACK_VALUES = 2**26


def crop_batched(
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]] | Tensor,
    params: ViewParams,
    out: list[Float[Tensor, "_ B C _ _"]],
) -> None:
    """Writes the boxes of all views, resized and flipped, into `out`: whole numbers up to white.

    Args:
        images: on the device of `out`; of one size as a tensor [B, C, H, W], or of mixed sizes.
        params: drawn for these images.
        out: float32 [V, B, C, S, S] per resolution.
    """
    white = torch.iinfo(images[0].dtype).max
    boxes, flip = send([params.box, params.flip], out[0].device)
    for rows in _groups(images):
        stack = images[rows] if isinstance(images, Tensor) else _padded(images[rows])
        first = 0
        for of_side in out:
            views = slice(first, first + len(of_side))
            box, side = boxes[views, rows], of_side.shape[-1]
            longest = params.box[views, rows, 2:].max().item()  # of the copy that the host has
            reach = math.ceil(2 * max(1.0, longest / side))
            of_views = Boxes(
                box[..., :2], box[..., 2:], flip[views, rows], reach, params.plan.interpolation
            )
            x = resample_boxes(stack, of_views, side)
            of_side[:, rows] = x if white == 255 else x.round_().clamp_(0, white)
            first += len(of_side)


def _groups(images: Sequence[Tensor] | Tensor) -> Iterator[slice]:
    """Yields runs of images whose stack, padded to the largest, is bounded."""
    start, height, width = 0, 0, 0
    for i, image in enumerate(images):
        channels, h, w = image.shape
        height, width = max(height, h), max(width, w)
        if i > start and (i + 1 - start) * channels * height * width > _STACK_VALUES:
            yield slice(start, i)
            start, height, width = i, h, w
    yield slice(start, len(images))


def _padded(images: Sequence[Tensor]) -> UInt8[Tensor, "B C H W"] | UInt16[Tensor, "B C H W"]:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    stack = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(stack, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return stack


def recolour_batched(
    views: list[Float[Tensor, "_ C _ _"]], params: ViewParams, white: float
) -> None:
    """Applies the operations and the normalisation, in place, to `crop_batched`'s views.

    Args:
        views: float32 [V*B, C, S, S] per resolution.
        params: drawn for these images.
        white: the largest value of their type.
    """
    plan, device, first = params.plan, views[0].device, 0
    mean, std = (torch.tensor(v)[:, None, None] for v in (plan.mean, plan.std))
    scale, shift = send([1 / (white * std), mean / std], device)
    for (_, n_views), x in zip(plan.resolutions, views, strict=True):
        of_side = params.of_views(first, n_views)
        for rows in _chunks(x):
            part = x[rows]
            for change in _sent(_changes(of_side, rows), device):
                part[change.rows] = change.kernel(part[change.rows], change.parameter, white)
            part.mul_(scale).sub_(shift)
        first += n_views


def _changes(params: ViewParams, rows: slice) -> list[Change]:
    """Returns the changes of rows of the flattened [V*B] batch, in order, on the CPU."""
    changes: list[Change] = []
    for name, operation in params.plan.operations.items():
        drawn = {k: value.flatten(0, 1)[rows] for k, value in params.operations[name].items()}
        changes += operation.apply_batched(drawn, params.plan.views)
    return [change for change in changes if len(change.rows)]


def _sent(changes: list[Change], device: torch.device) -> list[Change]:
    """Returns the changes on the device, compiled there: each is then one kernel or two."""
    tensors = [t for change in changes for t in (change.rows, change.parameter) if t is not None]
    sent = iter(send(tensors, device))
    compiled = _compiled if device.type == "cuda" else lambda kernel: kernel
    return [
        Change(compiled(kernel), next(sent), None if parameter is None else next(sent))
        for kernel, _, parameter in changes
    ]


@lru_cache
def _compiled(kernel: Kernel) -> Kernel:
    return _where_it_compiles(kernel, torch.compile(kernel, dynamic=True))


def _where_it_compiles(kernel: Kernel, compiled: Kernel) -> Kernel:
    """Returns the compiled kernel, which falls back to the kernel itself once it has failed.

    It fails on machines without Triton or a C compiler; the fallback is only slower.
    """
    use = compiled

    def either(x: Tensor, parameter: Any, white: float) -> Tensor:
        nonlocal use
        try:
            return use(x, parameter, white)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if use is kernel:
                raise
            use = kernel
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            logger.warning("views are slower, since torch.compile fails here: %s", why)
            return kernel(x, parameter, white)

    return either


def _chunks(x: Tensor) -> Iterator[slice]:
    """Yields the rows to recolour together: few on a CPU, all on an accelerator."""
    n_rows, floats = x.shape[0], max(1, x[:1].numel())
    step = max(1, _CHUNK_FLOATS // floats) if x.device.type == "cpu" else max(1, n_rows)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def send(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Returns small tensors on a device, after one copy that the host does not wait for."""
    if device.type == "cpu" or not tensors:
        return tensors
    # Those of the largest alignment first: 8 bytes, 4, 1.
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    raw = [tensors[i].contiguous().flatten().view(torch.uint8) for i in order]
    buffer = torch.cat(raw)
    buffer = buffer.pin_memory() if device.type == "cuda" else buffer
    parts = buffer.to(device, non_blocking=True).split([len(part) for part in raw])
    sent: list[Tensor] = list(tensors)
    for i, part in zip(order, parts, strict=True):
        sent[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return sent
