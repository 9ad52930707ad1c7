"""Subsets of a source, and deterministic splits into two."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import Detail, Header, Mask, Sample, Source, number_of
from vitrail.nn.random import philox


class Subset(Source):
    """Some samples of another source.

    Args:
        source: the other source.
        indices: of the samples, in the order of the subset.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        self.spec = source.spec
        self.channels = source.channels
        self.bits = source.bits
        self.classes = source.classes
        self.captioned = source.captioned
        self.metric = source.metric
        self.masked = source.masked
        self.notes = source.notes
        self.unlabelled = source.unlabelled
        self._source = source
        self._indices = [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        return self._source.read(self._indices[index], detail)

    def id(self, index: int) -> str:
        return self._source.id(self._indices[index])

    def label(self, index: int) -> int | None:
        return self._source.label(self._indices[index])

    def text(self, index: int) -> str | None:
        return self._source.text(self._indices[index])

    def mask(self, index: int) -> Mask | None:
        return self._source.mask(self._indices[index])

    def header(self, index: int) -> Header | None:
        return self._source.header(self._indices[index])

    def picture(self, index: int) -> str:
        return self._source.picture(self._indices[index])

    def fingerprint(self) -> str:
        parts = repr((self._source.fingerprint(), self._indices))
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def written(self) -> Sequence[tuple[str, int, int]]:
        return self._source.written()

    def pixels(self) -> UInt8[Tensor, "N C H W"] | UInt16[Tensor, "N C H W"] | None:
        pixels = self._source.pixels()
        return None if pixels is None else pixels[torch.tensor(self._indices, dtype=torch.long)]

    def blocks(self) -> Sequence[range] | None:
        """Returns the blocks of the source if the indices are in order, else None."""
        blocks = self._source.blocks()
        indices = np.array(self._indices)
        if blocks is None or (np.diff(indices) < 0).any():
            return None
        in_order = sorted(blocks, key=lambda block: block.start)
        cuts = np.searchsorted(indices, [block.stop for block in in_order]).tolist()
        return [range(start, stop) for start, stop in zip([0, *cuts], cuts, strict=False)]


def stratified_split(
    labels: Sequence[int | None], fraction: float, seed: int, stream: str
) -> tuple[list[int], list[int]]:
    """Splits positions in two, the second with about `fraction` of each label; each is in order.

    Counter-based: a pure function of the arguments. Samples without a label are one more class.

    Args:
        labels: of the samples, None for no label.
        fraction: share of each class in the second part, in [0, 1].
        seed: of the random order.
        stream: name of the random stream.
    """
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(number_of(label), []).append(position)
    second: set[int] = set()
    for label, members in groups.items():
        order = philox(seed, stream, label + 1).permutation(len(members))
        second.update(np.array(members)[order[: round(len(members) * fraction)]].tolist())
    return [i for i in range(len(labels)) if i not in second], sorted(second)


def hold_out(source: Source, fraction: float = 0.2, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits any source into (train, test), deterministically and stratified by label.

    Samples of one image with several captions stay together.

    Args:
        source: to split.
        fraction: share of the samples (of each class) held out, rounded, in (0, 1).
        seed: of the random order.

    Raises:
        ValueError: the fraction is out of range, or leaves one side empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"hold_out: fraction is {fraction}; it must be between 0 and 1")
    samples: dict[str, list[int]] = {}  # of every image
    for index in range(len(source)):
        samples.setdefault(source.picture(index), []).append(index)
    images = list(samples.values())
    labels = [source.label(indices[0]) for indices in images]
    train, test = (
        sorted(index for image in side for index in images[image])
        for side in stratified_split(labels, fraction, seed, "hold_out")
    )
    if not train or not test:
        raise ValueError(
            f"hold_out: fraction {fraction} of the {len(source)} samples of {source.spec} leaves "
            f"{len(train)} for training and {len(test)} for testing; both need at least one"
        )
    return Subset(source, train), Subset(source, test)
