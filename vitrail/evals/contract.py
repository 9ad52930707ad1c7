"""The input of a protocol: an encoder, two splits of a source with their features, and a seed.

A protocol is a function `run(context, *configs)` and a row of `vitrail.evals.registry`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16, UInt64
from torch import Tensor

from vitrail.data.contract import BadSampleError, Metric, Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.encoder import Encoder
from vitrail.nn.random import philox
from vitrail.text_encoder import TextEncoder

Image = UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]
KINDS = ("raw", "untrained", "trained")  # of features


@dataclass(frozen=True)
class Split:
    """A split of a source, and its features.

    Attributes:
        source: the images.
        features: of the readable images, by kind ("raw", "untrained", "trained"); {} where no
            protocol needs them.
        labels: class numbers, -1 for none.
        index: the sample of the source that each row is of.
        quarantine: the samples that cannot be read.
        digests: of the decoded pixels of each row; None where no protocol needs features or labels.
    """

    source: Source
    features: dict[str, Float32[np.ndarray, "N D"]]
    labels: Int64[np.ndarray, " N"]
    index: Int64[np.ndarray, " N"]
    quarantine: Quarantine
    digests: UInt64[np.ndarray, " N"] | None = None


@dataclass(frozen=True)
class Context:
    """The input of a protocol, beside its own config.

    Attributes:
        encoder: the trained encoder; `encoder.untrained()` has the run's initial weights.
        train: the training split.
        test: the test split.
        figures: the folder that figures go to.
        device: of the encoder, such as "cpu" or "cuda".
        seed: of all that is drawn.
        pictures: images in each figure.
        image_size: pixels a side at which token maps are taken; None is the encoder's own.
        asked_metric: what accuracies are; None for what the test data ask for.
        workers: processes that decode, for protocols that read images; 0 is this process.
        text: the encoder's text side, if it has one.
        cache: intermediate results that protocols share.
    """

    encoder: Encoder
    train: Split
    test: Split
    figures: Path
    device: str
    seed: int = 0
    pictures: int = 8
    image_size: int | None = None
    asked_metric: Metric | None = None
    workers: int = 0
    text: TextEncoder | None = None
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def metric(self) -> Metric:
        """The kind of accuracy: the fraction that is right, or its mean over classes."""
        return self.asked_metric or self.test.source.metric

    def chosen(self, count: int) -> list[int]:
        """Returns up to `count` rows of the test split, drawn, to show one by one."""
        order = philox(self.seed, "pictures", 0).permutation(len(self.test.labels))
        return order[:count].tolist()

    def images(self, count: int) -> list[Image]:
        """Returns the images of `chosen` that can be read. Raises ValueError if none can."""
        images = list(self._read(self.chosen(count)))
        if not images:
            raise ValueError(
                f"{self.test.source.spec}: none of the images chosen to look at can be read"
            )
        return images

    def by_class(self, classes: int, each: int) -> dict[str, list[Image]]:
        """Returns `each` drawn test images of the first `classes` classes that have them, by name.

        Raises:
            ValueError: no class has as many.
        """
        source = self.test.source
        found: dict[str, list[Image]] = {}
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
            raise ValueError(
                f"{source.spec}: no class has at least {each} test images that can be read"
            )
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
