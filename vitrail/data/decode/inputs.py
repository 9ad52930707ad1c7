"""Batches of uint8 or uint16 images [C, H, W] from the arguments of `Encoder.transform`.

Shape legend: N images · C channels · H×W pixels.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.contract import BadSampleError
from vitrail.data.decode.arrays import decode_array_file, needs_arrays
from vitrail.data.decode.image import UnusablePixelsError, decode_file, from_pil
from vitrail.data.decode.pixels import channel_axis

# A sequence's items are arrays, tensors, PIL images or paths; any other is an error.
ImagesLike = np.ndarray | Tensor | Sequence[object]

CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGB with alpha
GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601 luma, as Pillow's convert("L")


def batches(images: ImagesLike, channels: int, batch_size: int) -> Iterator[list[Tensor]]:
    """Yields lists of up to `batch_size` images [channels, H, W], decoded on demand.

    They are uint8 or uint16, whose largest numbers stand for 1.

    Args:
        images: one array of them all, or a sequence of arrays, tensors, PIL images and paths.
        channels: of the encoder; grey and RGB are converted into each other, alpha laid over white.
        batch_size: at least 1.

    Raises:
        ValueError: a type, shape or range that is not images, or a file that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(f"transform takes a sequence of images, not one: write [{images!r}]")
    images = _listed(images)
    whole = isinstance(images, (np.ndarray, Tensor))
    if whole:
        images = _channels_first(_whole_numbers(images, "images"), channels)
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        named = ((f"image {start + i}", image) for i, image in enumerate(part))
        if whole:
            yield [_adapt(image, channels, name) for name, image in named]
        else:
            yield [_one(image, channels, name) for name, image in named]


def _whole_numbers(array: Any, name: str) -> Tensor:
    dtype = str(array.dtype).removeprefix("torch.")
    known = {"uint8": np.uint8, "uint16": np.uint16, ">u2": np.uint16}  # the last: swapped bytes
    if dtype not in known:
        raise ValueError(
            f"{name} have dtype {dtype}: pass uint8 in 0..255 or uint16 in 0..65535 (for floats in "
            "0..1: (255 * images).round().astype('uint8')), so that there is no guessing of the "
            "range"
        )
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.ascontiguousarray(array, dtype=known[dtype]))


def _channels_first(images: Tensor, channels: int) -> Tensor:
    """Returns [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, C, H, W]."""
    if images.ndim == 3:
        _refuse_one_image(images, channels)
        return images[:, None]
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {list(images.shape)}: expected [N, H, W], [N, H, W, C] or "
            "[N, C, H, W] (a single image needs a leading axis: images[None])"
        )
    return images if _axis(images.shape[1:], channels) == 0 else images.permute(0, 3, 1, 2)


def _listed(images: Any) -> Any:
    """Returns an array of paths or objects as a list; other arrays and sequences as they are.

    Raises:
        ValueError: no array and no sequence.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUST":
        if images.ndim != 1:
            raise ValueError(
                f"an array of {images.dtype} has shape {list(images.shape)}; pass paths or images "
                "as a list, or as an array [N]"
            )
        return images.tolist()
    if isinstance(images, (Mapping, Set)) or not hasattr(images, "__getitem__"):
        raise ValueError(
            f"images are a {type(images).__name__}; pass an array, a tensor or a list of images"
        )
    return images


def _refuse_one_image(images: Tensor, channels: int) -> None:
    """Refuses three axes that are one image in colour as likely as several grey ones.

    Raises:
        ValueError: the last axis is as long as channels are, or the first one is and the encoder
            is not one for grey images.
    """
    shape, known = list(images.shape), {channels, *CHANNEL_COUNTS}
    if shape[2] in known and min(shape[:2]) > 1:
        as_one, axes = "images[None]", "[H, W, C]"
    elif shape[0] in known - {1} and min(shape[1:]) > 1:
        as_one, axes = "images[None]", "[C, H, W]"
        if channels == 1:  # of grey images, three are a usual batch
            warnings.warn(
                f"images of shape {shape} are taken as {shape[0]} grey images [N, H, W]; one image "
                f"{axes} is {as_one}",
                stacklevel=4,
            )
            return
    else:
        return
    raise ValueError(
        f"images of shape {shape} could be one image {axes} or {shape[0]} grey ones [N, H, W]: "
        f"pass {as_one} for one image, or images[:, None] ([N, 1, H, W]) for grey ones"
    )


def _axis(shape: Sequence[int], channels: int) -> int:
    """Returns the axis of three that holds the channels, 0 or 2."""
    known = (channels, *CHANNEL_COUNTS)
    axis = channel_axis(shape, (channels,), known)
    if axis is not None:
        return axis
    reason = "either axis could be" if shape[0] in known else "no axis can be"
    raise ValueError(
        f"an image of shape {list(shape)}: {reason} the channels ({channels} of the encoder, or "
        f"one of {', '.join(map(str, CHANNEL_COUNTS))}); pass [C, H, W] or [H, W, C] with such a "
        "count, or PIL images"
    )


def _one(image: Any, channels: int, name: str) -> Tensor:
    """Returns one image of a sequence as [channels, H, W]."""
    if isinstance(image, bytes):  # a path of a numpy array of dtype S
        image = os.fsdecode(image)
    if isinstance(image, (str, os.PathLike)):
        image = os.fspath(image)
        try:
            if needs_arrays(image, channels, 8):
                return decode_array_file(image, channels, 16)  # 8 bits lose nothing by it
            return decode_file(image, channels)
        except BadSampleError as error:
            raise ValueError(f"{name} ({image}): {error.reason}") from error
    if isinstance(image, Image.Image):
        try:
            return from_pil(image, channels)
        except UnusablePixelsError as error:
            raise ValueError(f"{name}: {error}") from error
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}; pass a uint8 or uint16 array or tensor, a PIL "
            "image, or the path of an image file"
        )
    tensor = _whole_numbers(image, f"pixels of {name}")
    if tensor.ndim == 2:
        return _adapt(tensor[None], channels, name)
    if tensor.ndim != 3:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; pass [H, W], [H, W, C] or [C, H, W]"
        )
    first = _axis(tensor.shape, channels) == 0
    return _adapt(tensor if first else tensor.permute(2, 0, 1), channels, name)


def _adapt(image: Tensor, channels: int, name: str) -> Tensor:
    """Returns grey as RGB or RGB as grey, to fit `channels`; alpha is laid over white first."""
    count = image.shape[0]
    if count == channels:
        return image.contiguous()
    if count == 4 and channels in (1, 3):
        white = torch.iinfo(image.dtype).max
        alpha = image[3:].float() / white
        flat = image[:3].float() * alpha + white * (1 - alpha)
        return _adapt(flat.round().to(image.dtype), channels, name)
    if count == 1 and channels == 3:
        return image.expand(3, -1, -1).contiguous()
    if count == 3 and channels == 1:
        luma = torch.einsum("chw,c->hw", image.float(), GREY.to(image.device))
        return luma.round().to(image.dtype)[None]
    raise ValueError(
        f"{name} has {count} channels and the encoder was trained on {channels}: there is no "
        "way to turn one into the other"
    )
