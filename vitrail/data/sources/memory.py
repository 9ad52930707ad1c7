"""A source whose images are held in memory."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import Detail, Header, Sample, Source
from vitrail.data.sources.channels import choose_channels


class MemorySource(Source):
    """Images of one size, with or without labels and captions.

    Args:
        spec: of the source, as the user wrote it.
        images: uint8 or uint16 [N, C, H, W].
        labels: int [N], class numbers, negative for no label; None if no image has one.
        classes: names of the classes.
        channels: of every image read, None for the images' own; grey ones may become 3 channels.
        texts: N captions.
        ids: N names for people; by default the images' numbers.

    Raises:
        ValueError: `channels` is neither the images' own number nor 3 of grey ones.
    """

    def __init__(
        self,
        spec: str,
        images: UInt8[Tensor, "N C H W"] | UInt16[Tensor, "N C H W"],
        labels: Int[Tensor, " N"] | None,
        classes: Sequence[str] | None,
        channels: int | None,
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ):
        self.spec = spec
        self.channels = choose_channels(spec, channels, images.shape[1])
        self.bits = 8 if images.dtype == torch.uint8 else 16
        self.classes: Sequence[str] | None = None if classes is None else tuple(classes)
        self._images = images.expand(-1, self.channels, -1, -1).contiguous()
        self.captioned = texts is not None
        self._labels = None if labels is None else labels.tolist()
        self._texts = None if texts is None else tuple(texts)
        self._ids = None if ids is None else tuple(ids)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        return Sample(self._images[index], self.label(index), self.text(index), self.id(index))

    def id(self, index: int) -> str:
        return str(index) if self._ids is None else self._ids[index]

    def header(self, index: int) -> Header:
        _, height, width = self._images.shape[1:]
        return Header(height, width, str(self._images.dtype).removeprefix("torch."))

    def text(self, index: int) -> str | None:
        return None if self._texts is None else self._texts[index]

    def fingerprint(self) -> str:
        """Returns a digest of pixels, labels and captions."""
        digest = hashlib.blake2b(self._images.flatten().numpy().data, digest_size=16)
        digest.update(repr((tuple(self._images.shape), self._labels)).encode())
        if self._texts is not None:
            digest.update(repr(self._texts).encode())
        return digest.hexdigest()

    def pixels(self) -> UInt8[Tensor, "N C H W"] | UInt16[Tensor, "N C H W"]:
        return self._images
