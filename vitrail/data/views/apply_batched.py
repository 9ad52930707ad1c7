"""Views of a batch at once: on an accelerator, and of small images in memory on a CPU.

Crop, resize and flip are two products; colours, grey, blur and solarize are operations on all rows
that they were drawn for, each row with its own parameters. The host knows which rows these are, so
that an accelerator is never waited for, and sends them in one copy.

Shape legend: V views · B images · C channels · H, W an image · S output side · N rows, view-major.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from vitrail.data.views import colour
from vitrail.data.views.plan import ViewParams
from vitrail.data.views.resample import Boxes, resample_boxes

logger = logging.getLogger(__name__)

# Changes only speed: colours of this many floats at a time stay in a CPU core's cache.
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
        params: drawn for these images. out: float32 [V, B, C, S, S] per resolution.
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
            of_views = Boxes(box[..., :2], box[..., 2:], flip[views, rows], reach)
            x = resample_boxes(stack, of_views, side)
            of_side[:, rows] = x if white == 255 else x.round_().clamp_(0, white)
            first += len(of_side)


def _groups(images: Sequence[Tensor] | Tensor) -> Iterator[slice]:
    """Runs of images whose stack, padded to the largest, is bounded."""
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


class Change(NamedTuple):
    """An operation, the rows that it was drawn for, and a parameter for each of them, if any."""

    operation: colour.Operation
    rows: Tensor  # int64 [n]
    parameter: Tensor  # float32 [n, ...]


def recolour_batched(
    views: list[Float[Tensor, "_ C _ _"]], params: ViewParams, white: float
) -> None:
    """Jitter, grey, blur, solarize and normalisation, in place, of `crop_batched`'s views."""
    plan, device, first = params.plan, views[0].device, 0
    mean, std = (torch.tensor(v)[:, None, None] for v in (plan.mean, plan.std))
    scale, shift = send([1 / (white * std), mean / std], device)
    for (_, n_views), x in zip(plan.resolutions, views, strict=True):
        of_side = params.of_views(first, n_views)
        for rows in _chunks(x):
            part = x[rows]
            for change in _sent(_changes(of_side, rows), device):
                part[change.rows] = change.operation(part[change.rows], change.parameter, white)
            part.mul_(scale).sub_(shift)
        first += n_views


def _changes(params: ViewParams, rows: slice) -> list[Change]:
    """What is done to rows of the flattened [V*B] batch, in order. On the CPU."""
    of_rows = {
        name: value.flatten(0, 1)[rows] for name, value in vars(params).items() if name != "plan"
    }
    factors, order, sigma = of_rows["factors"], of_rows["order"], of_rows["sigma"]
    changes = []

    def add(operation: colour.Operation, mask: Tensor, parameter: Tensor) -> None:
        index = mask.nonzero()[:, 0]
        if len(index):
            changes.append(Change(operation, index, parameter[index]))

    for slot in range(order.shape[1]):
        for kind, (operation, neutral) in colour.JITTER.items():
            factor = factors[:, kind]
            drawn = of_rows["jitter"] & (order[:, slot] == kind) & (factor != neutral)
            add(operation, drawn, factor[:, None, None, None])
    add(_grey, of_rows["grey"], sigma)
    if (sigma > 0).any():
        # One reach for all batches: another number of taps would be compiled anew.
        largest = max(view.blur_sigma[1] for view in params.plan.views)
        weights = colour.gaussian(sigma.clamp(min=1e-3), largest)
        add(_blur, sigma > 0, weights)
    add(_solarize, of_rows["solarize"], sigma)
    return changes


def _grey(x: Tensor, _: Tensor, __: float) -> Tensor:
    return colour.grey(x)


def _blur(x: Tensor, weight_NK: Tensor, _: float) -> Tensor:
    return colour.blur(x, weight_NK)


def _solarize(x: Tensor, _: Tensor, white: float) -> Tensor:
    return colour.solarize(x, white)


def _sent(changes: list[Change], device: torch.device) -> list[Change]:
    """The same on the device, compiled there: each operation is then one kernel or two."""
    sent = iter(send([t for change in changes for t in (change.rows, change.parameter)], device))
    compiled = _compiled if device.type == "cuda" else lambda operation: operation
    return [Change(compiled(operation), next(sent), next(sent)) for operation, *_ in changes]


@lru_cache
def _compiled(operation: colour.Operation) -> colour.Operation:
    return _where_it_compiles(operation, torch.compile(operation, dynamic=True))


def _where_it_compiles(operation: colour.Operation, compiled: colour.Operation) -> colour.Operation:
    """The compiled operation; the operation itself, which is only slower, once that has failed, as
    on machines without Triton or a C compiler."""
    use = compiled

    def either(x: Tensor, parameter: Any, white: float) -> Tensor:
        nonlocal use
        try:
            return use(x, parameter, white)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if use is operation:
                raise
            use = operation
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            logger.warning("views are slower, since torch.compile fails here: %s", why)
            return operation(x, parameter, white)

    return either


def _chunks(x: Tensor) -> Iterator[slice]:
    """Rows to recolour together: few on a CPU, all on an accelerator."""
    n_rows, floats = x.shape[0], max(1, x[:1].numel())
    step = max(1, _CHUNK_FLOATS // floats) if x.device.type == "cpu" else max(1, n_rows)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def send(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Small tensors of the host on the device, in one copy that the host does not wait for."""
    if device.type == "cpu" or not tensors:
        return tensors
    # In turn of their alignment: 8 bytes, 4, 1.
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    raw = [tensors[i].contiguous().flatten().view(torch.uint8) for i in order]
    buffer = torch.cat(raw)
    buffer = buffer.pin_memory() if device.type == "cuda" else buffer
    parts = buffer.to(device, non_blocking=True).split([len(part) for part in raw])
    sent: list[Tensor] = list(tensors)
    for i, part in zip(order, parts, strict=True):
        sent[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return sent
