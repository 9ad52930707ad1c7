"""What an encoder sees at evaluation: the whole image, made small, its centre cut out, normalised.

Shape legend: N images · C channels · H, W an image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrail.data.apply import full_precision
from vitrail.data.resample import Taps, resample_one, taps
from vitrail.data.views import check_normalisation


@dataclass(frozen=True)
class Preprocess:
    """Resizes the short side to `resize` pixels, cuts out the central `size` × `size`, normalises.

    As torchvision's Resize(resize, BICUBIC), CenterCrop(size), Normalize(mean, std) without the
    rounding to 8 bits; only the pixels that are kept are computed, whatever the image's shape.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"preprocess: size is {self.size} and resize is {self.resize}; "
                "they must be at least 1 and size must not be above resize"
            )
        check_normalisation("preprocess", self.mean, self.std)

    def __call__(
        self, images: list[UInt8[Tensor, "C _ _"]] | UInt8[Tensor, "N C H W"]
    ) -> Float[Tensor, "N C {self.size} {self.size}"]:
        """Computes on the device of the images. ValueError if their channels do not fit."""
        device = images[0].device if len(images) else torch.device("cpu")
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        std = torch.tensor(self.std, device=device)[:, None, None]
        out = torch.empty(len(images), len(self.mean), self.size, self.size, device=device)
        with torch.no_grad(), full_precision(device):
            for i, image in enumerate(images):
                if image.shape[0] != len(self.mean):
                    raise ValueError(
                        f"preprocess: image {i} has {image.shape[0]} channels, but mean has "
                        f"{len(self.mean)}; open the images with channels={len(self.mean)}"
                    )
                out[i] = self._resized(image)
        return out.div_(255).clamp_(0, 1).sub_(mean).div_(std)

    def _resized(self, image: UInt8[Tensor, "C H W"]) -> Float[Tensor, "C S S"]:
        short = min(image.shape[1:])
        windows, sides = [], []
        for length in image.shape[1:]:
            out_length = self.resize * length // short
            first = round((out_length - self.size) / 2)
            window, along = self._window(length, out_length, first)
            windows.append(window)
            sides.append(Taps(along.position.to(image.device), along.weight.to(image.device)))
        return resample_one(image[:, windows[0], windows[1]], *sides)

    def _window(self, length: int, out_length: int, first: int) -> tuple[slice, Taps]:
        """The pixels that are needed along one axis, and the taps counted from their first."""
        no = torch.tensor(False)
        along = taps(
            torch.tensor(length), torch.tensor(out_length), torch.tensor(first), no, self.size
        )
        used = along.position[along.position >= 0]
        start, stop = int(used.min()), int(used.max()) + 1
        position = torch.where(along.position < 0, -1, along.position - start)
        return slice(start, stop), Taps(position, along.weight)
