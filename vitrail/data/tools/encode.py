"""Images resized and encoded as files again, in memory, for the shards of `pack`.

Shape legend: C channels · H, W an image.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from vitrail.data.contract import Detail, Look, Sample, Source


@dataclass(frozen=True)
class Packing:
    """The size and format in which images are written.

    Images of 16 bits, or of other than 1 or 3 channels, are `raw` whatever the format.

    Attributes:
        size: short side of larger images after resizing, in pixels, 0 to 65536; 0 resizes none.
        quality: JPEG quality, 1 to 100.
        shard_mb: largest size of a shard, in 10^6 bytes, 1 to 1000000.
        format: file format of the images: jpg, png, or raw (a .npy file of [C, H, W]).

    Raises:
        ValueError: a number out of its range.
    """

    size: int = 512
    quality: int = 95
    shard_mb: int = 256
    format: Literal["jpg", "png", "raw"] = "jpg"

    def __post_init__(self) -> None:
        for name, low, high in (("size", 0, 2**16), ("quality", 1, 100), ("shard_mb", 1, 10**6)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"pack: {name} is {value}; it must be in {low}..{high}")

    def suffix(self, source: Source) -> str:
        """Returns the suffix of the files that a source's images are written as."""
        as_file = source.bits == 8 and source.channels in (1, 3) and self.format != "raw"
        return self.format if as_file else "npy"


class Encoded(Source):
    """A source whose images are encoded files, uint8 [1, 1, bytes].

    They are encoded where they are read, so worker processes do all the work.

    Args:
        source: of the images.
        packing: the size and format of the files.
    """

    def __init__(self, source: Source, packing: Packing):
        self.spec = source.spec
        self.channels = 1
        self.classes = source.classes
        self._source = source
        self._packing = packing
        self._suffix = packing.suffix(source)
        # A JPEG is decoded at a half, a quarter or an eighth of its size if that leaves at least
        # `contract.GAP` times the size that is wanted.
        looks = (Look(packing.size, 1.0, (1.0, 1.0)),)
        self._detail = Detail(looks) if packing.size else None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        sample = self._source.read(index, self._detail)
        pixels_CHW = resized(sample.image.numpy(), self._packing.size)
        data = encode(pixels_CHW, self._suffix, self._packing.quality)
        image = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None, None]
        return Sample(image, sample.label, sample.text, sample.id)

    def id(self, index: int) -> str:
        return self._source.id(index)

    def label(self, index: int) -> int | None:
        return self._source.label(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def resized(pixels_CHW: np.ndarray, size: int) -> np.ndarray:
    """Returns an image with its short side at most `size` pixels (bicubic, antialiased).

    A smaller one, and any with `size` 0, is returned as it is.
    """
    height, width = pixels_CHW.shape[1:]
    short = min(height, width)
    if not size or short <= size:
        return pixels_CHW
    to = (max(1, round(width * size / short)), max(1, round(height * size / short)))
    if pixels_CHW.dtype == np.uint8 and len(pixels_CHW) == 3:
        image = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
        return np.asarray(image.resize(to, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    limit = np.iinfo(pixels_CHW.dtype).max
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(to, Image.Resampling.BICUBIC))
        for plane in pixels_CHW
    ]
    return np.stack(planes).round().clip(0, limit).astype(pixels_CHW.dtype)


def encode(pixels_CHW: np.ndarray, suffix: str, quality: int) -> bytes:
    """Returns an image file: jpg or png of uint8 with 1 or 3 channels, or npy of any array.

    Args:
        pixels_CHW: uint8 or uint16.
        suffix: "jpg", "png" or "npy".
        quality: of a JPEG, 1 to 100.
    """
    file = io.BytesIO()
    if suffix == "npy":
        np.save(file, np.ascontiguousarray(pixels_CHW), allow_pickle=False)
        return file.getvalue()
    grey = len(pixels_CHW) == 1
    pixels = np.ascontiguousarray(pixels_CHW[0] if grey else pixels_CHW.transpose(1, 2, 0))
    image = Image.fromarray(pixels)
    if suffix == "jpg":
        image.save(file, "JPEG", quality=quality)
    else:
        image.save(file, "PNG", compress_level=3)
    return file.getvalue()
