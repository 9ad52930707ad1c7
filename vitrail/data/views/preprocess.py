"""The transform of images at evaluation: resize, cut out the centre, normalise.

Shape legend: N images · C channels · H, W an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from vitrail.data.views.apply import full_precision
from vitrail.data.views.plan import check_normalisation
from vitrail.data.views.preparation import Interpolation
from vitrail.data.views.resample import Taps, resample_one, resample_one_rounded, taps

LONG = 4096  # pixels of a side of which all weights are looked at for the largest
STACK_VALUES = 2**22  # pixel values turned to float at a time, 16 MB


@dataclass(frozen=True)
class Preprocess:
    """Resizes the short side to `resize` pixels, cuts out the central `size` × `size`, normalises.

    As torchvision's Resize(resize), CenterCrop(size), Normalize(mean, std), by default without the
    rounding to 8 bits; only the pixels that remain are computed, whatever the image's shape.

    Attributes:
        size: side of the result, in pixels, at least 1 and at most `resize`.
        resize: short side of the resized image, in pixels.
        mean: subtracted from the pixels, in [0, 1], one value a channel.
        std: divides the pixels after that, above 0, one value a channel.
        interpolation: filter of the resizing, "bicubic" or "bilinear".
        keep_aspect: keep the image's shape; otherwise all of it becomes a square of `resize` pixels
            a side, out of which the centre is cut.
        rounding: "none" computes in floating point. As other libraries do, "torchvision" (timm's
            too) and "transformers" round images of 8 bits to 8 bits after the resizing; they differ
            in the corner of the crop, which the first rounds to the nearest pixel, to the even of
            two, and the other rounds down.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    keep_aspect: bool = True
    rounding: Literal["none", "torchvision", "transformers"] = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"preprocess: size is {self.size} and resize is {self.resize}; "
                "they must be at least 1 and size must not be above resize"
            )
        check_normalisation("preprocess", self.mean, self.std)
        for name, known in (
            ("interpolation", ("bicubic", "bilinear")),
            ("rounding", ("none", "torchvision", "transformers")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"preprocess: {name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(known)}"
                )

    def __call__(
        self,
        images: list[UInt8[Tensor, "_ _ _"] | UInt16[Tensor, "_ _ _"]]
        | UInt8[Tensor, "N C H W"]
        | UInt16[Tensor, "N C H W"],
    ) -> Float[Tensor, "N C {self.size} {self.size}"]:
        """Returns the images transformed, computed on their device.

        Args:
            images: 0 to the largest number of their type, which stand for 0 to 1; a list for mixed
                sizes.

        Raises:
            ValueError: their channels do not fit.
        """
        device = images[0].device if len(images) else torch.device("cpu")
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        std = torch.tensor(self.std, device=device)[:, None, None]
        out = torch.empty(len(images), len(self.mean), self.size, self.size, device=device)
        with torch.no_grad(), full_precision(device):
            for start, same_NCHW in _of_one_size(images):
                if same_NCHW.shape[1] != len(self.mean):
                    raise ValueError(
                        f"preprocess: image {start} has {same_NCHW.shape[1]} channels, but mean "
                        f"has {len(self.mean)}; open the images with channels={len(self.mean)}"
                    )
                # To the two products, the images of a stack are just more channels.
                resized_MSS = self._resized(same_NCHW.flatten(0, 1))
                resized_MSS.div_(torch.iinfo(same_NCHW.dtype).max)
                out[start : start + len(same_NCHW)] = resized_MSS.unflatten(0, same_NCHW.shape[:2])
        return out.clamp_(0, 1).sub_(mean).div_(std)

    def stretched(
        self, image: UInt8[Tensor, "_ _ _"] | UInt16[Tensor, "_ _ _"], size: tuple[int, int]
    ) -> Float[Tensor, "C H W"]:
        """Returns the whole of an image, nothing cut off, resized and normalised.

        For uses that refer to places in the image. The filter is that of `__call__`.

        Args:
            image: 0 to the largest number of its type, which stand for 0 to 1.
            size: (height, width) of the result, in pixels.

        Raises:
            ValueError: the channels do not fit.
        """
        if len(image) != len(self.mean):
            raise ValueError(
                f"preprocess: the image has {len(image)} channels, but mean has {len(self.mean)}; "
                f"open it with channels={len(self.mean)}"
            )
        device = image.device
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (self.mean, self.std))
        sides = []
        for old, new in zip(image.shape[1:], size, strict=True):
            none, no = torch.tensor(0), torch.tensor(False)
            along = taps(torch.tensor(old), torch.tensor(new), none, no, new, self.interpolation)
            sides.append(Taps(along.position.to(device), along.weight.to(device)))
        with torch.no_grad(), full_precision(device):
            resized_CHW = resample_one(image, *sides)
        resized_CHW.div_(torch.iinfo(image.dtype).max)
        return resized_CHW.clamp_(0, 1).sub_(mean).div_(std)

    def _resized(
        self, image: UInt8[Tensor, "C H W"] | UInt16[Tensor, "C H W"]
    ) -> Float[Tensor, "C S S"]:
        short = min(image.shape[1:])
        windows, sides, largest = [], [], []
        for length in image.shape[1:]:
            out_length = self.resize * length // short if self.keep_aspect else self.resize
            first = round((out_length - self.size) / 2)
            if self.rounding == "transformers":
                first = (out_length - self.size) // 2
            window, along = self._window(length, out_length, first)
            windows.append(window)
            sides.append(Taps(along.position.to(image.device), along.weight.to(image.device)))
            if self.rounding != "none":
                largest.append(_largest_weight(length, out_length, self.interpolation))
        box = image[:, windows[0], windows[1]]
        if self.rounding != "none" and image.dtype == torch.uint8:
            return resample_one_rounded(box, sides[0], sides[1], (largest[0], largest[1]))
        return resample_one(box, *sides)

    def _window(self, length: int, out_length: int, first: int) -> tuple[slice, Taps]:
        """Returns the pixels needed along one axis, and the taps counted from the first of them."""
        no = torch.tensor(False)
        lengths = torch.tensor(length), torch.tensor(out_length)
        along = taps(*lengths, torch.tensor(first), no, self.size, self.interpolation)
        used = along.position[along.position >= 0]
        start, stop = int(used.min()), int(used.max()) + 1
        position = torch.where(along.position < 0, -1, along.position - start)
        return slice(start, stop), Taps(position, along.weight)


@lru_cache(maxsize=1024)
def _largest_weight(length: int, out_length: int, interpolation: Interpolation) -> float:
    """Returns the largest weight of a side that is resized, of very long ones nearly."""
    first, no = torch.tensor(0), torch.tensor(False)
    lengths = torch.tensor(length), torch.tensor(out_length)
    return float(taps(*lengths, first, no, min(out_length, LONG), interpolation).weight.max())


def _of_one_size(
    images: list[UInt8[Tensor, "_ _ _"] | UInt16[Tensor, "_ _ _"]]
    | UInt8[Tensor, "N C H W"]
    | UInt16[Tensor, "N C H W"],
) -> Iterator[tuple[int, UInt8[Tensor, "n C H W"] | UInt16[Tensor, "n C H W"]]]:
    """Yields stacks of images to resize together, each with the position of its first."""
    if isinstance(images, list):
        yield from ((i, image[None]) for i, image in enumerate(images))
        return
    together = max(1, STACK_VALUES // max(1, images[:1].numel()))
    for start in range(0, len(images), together):
        yield start, images[start : start + together]
