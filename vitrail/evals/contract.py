"""What the protocols work on: an encoder, the features of two splits, and the settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import BadSampleError, Metric, Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.encoder import Encoder
from vitrail.evals.classification.finetune import Finetune
from vitrail.evals.classification.knn import TAU, K, check_labels, neighbours
from vitrail.evals.features import LAST_BLOCKS
from vitrail.evals.patches.coco import CocoPlace
from vitrail.evals.patches.maskcut import MaskCut
from vitrail.evals.retrieval.zeroshot import TEMPLATES
from vitrail.nn.random import philox
from vitrail.text_encoder import TextEncoder

Array = np.ndarray
Image = UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]
Layout = Literal["pca", "umap"]
KINDS = ("raw", "untrained", "trained")


@dataclass(frozen=True)
class Settings:
    """What changes the numbers.

    Attributes:
        k: neighbours of k-NN.
        more_k: others that k-NN is counted for too.
        tau: temperature of its votes.
        metric: what accuracies are; mean_per_class averages over the test classes. None for what
            the data ask for, which is accuracy for most.
        draws: of the 10 labelled images per class.
        last_blocks: whose class tokens `linear_sweep` may look at.
        finetune: of the fine-tuning protocols.
        templates: of the prompts that `zeroshot` makes of a class's name, in the place of {}.
        maskcut: of `maskcut` and `detection`.
        coco: what `detection` is measured on.
        image_size: pixels a side, rounded down to whole patches, at which `saliency`, `pca` and
            `jaccard` look at images; None is the encoder's own.
        map_layout: how `map` brings features to a plane; umap needs the package umap-learn.
        pictures: images in each figure.
        seed: of draws, probes, fine-tuning and pictures; the 1 % and 10 % subsets have their own.
    """

    k: int = K
    more_k: tuple[int, ...] = ()
    tau: float = TAU
    metric: Metric | None = None
    draws: int = 10
    last_blocks: int = LAST_BLOCKS
    finetune: Finetune = field(default_factory=Finetune)
    templates: tuple[str, ...] = TEMPLATES
    maskcut: MaskCut = field(default_factory=MaskCut)
    coco: CocoPlace = field(default_factory=CocoPlace)
    image_size: int | None = None
    map_layout: Layout = "pca"
    pictures: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if low := [k for k in (self.k, *self.more_k) if k < 1]:
            raise ValueError(f"k = {low[0]}: k-NN needs at least one neighbour")
        for name in ("draws", "pictures", "last_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be at least 1")
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau}: it must be above 0")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size = {self.image_size}: it must be at least 1 pixel")


@dataclass(frozen=True)
class Split:
    """features: "raw", "untrained", "trained" -> float32 [N, D]; labels: [N], -1 where there is
    none; index: which sample of the source each row is; quarantine: those that cannot be read."""

    source: Source
    features: dict[str, Array]
    labels: Array
    index: Array
    quarantine: Quarantine


@dataclass(frozen=True)
class Material:
    """What a protocol works on. workers: processes that decode, for those that read images. text:
    the encoder's text side, if it has one."""

    encoder: Encoder
    train: Split
    test: Split
    settings: Settings
    figures: Path
    device: str
    workers: int = 0
    text: TextEncoder | None = None
    _nearest: dict[str, tuple[Array, Array]] = field(default_factory=dict, init=False, repr=False)

    @property
    def metric(self) -> Metric:
        """What accuracies are."""
        return self.settings.metric or self.test.source.metric

    def chosen(self, count: int) -> list[int]:
        """The rows of the test split that are looked at one by one: the first `count`, drawn."""
        order = philox(self.settings.seed, "pictures", 0).permutation(len(self.test.labels))
        return order[:count].tolist()

    def images(self, count: int) -> list[Image]:
        """Those of `chosen` that can be read. ValueError where none can."""
        images = list(self._read(self.chosen(count)))
        if not images:
            raise ValueError(
                f"{self.test.source.spec}: none of the images chosen to look at can be read"
            )
        return images

    def by_class(self, classes: int, each: int) -> dict[str, list[Image]]:
        """So many test images of each of the first classes that have them, drawn, by name.

        Raises:
            ValueError: no class has as many.
        """
        source = self.test.source
        found: dict[str, list[Tensor]] = {}
        order = self.chosen(len(self.test.index))
        labels = [source.label(int(self.test.index[row])) for row in order]
        for number, name in enumerate(source.classes or ()):
            if len(found) == classes:
                break
            rows = [row for row, label in zip(order, labels, strict=True) if label == number]
            images = list(islice(self._read(rows), each)) if len(rows) >= each else []
            if len(images) == each:
                found[str(name)] = images
        if not found:
            raise ValueError(f"{source.spec}: no class has {each} test images that can be read")
        return found

    def _read(self, rows: Sequence[int]) -> Iterator[Image]:
        source, quarantine = self.test.source, self.test.quarantine
        for row in rows:
            index = int(self.test.index[row])
            try:
                image = source.read(index).image
            except BadSampleError as error:
                quarantine.add(source.id(index), error.reason)
                continue
            yield image

    def nearest(self, kind: str) -> tuple[Array, Array]:
        """(similarities, labels) of the nearest train rows of every test row, as many as any k
        asks for; looked for once. ValueError where labels are missing."""
        check_labels(self.train.labels, "train")
        check_labels(self.test.labels, "test")
        if kind not in self._nearest:
            bank, queries = self.train.features[kind], self.test.features[kind]
            most = max([self.settings.k, *self.settings.more_k])
            similarity, index = neighbours(bank, queries, most, device=self.device)
            self._nearest[kind] = similarity, self.train.labels[index]
        return self._nearest[kind]
