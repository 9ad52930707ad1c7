"""The table of evaluation protocols: each turns features into numbers, or images into a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from vitrail.data.batch import BadSampleError, Source
from vitrail.encoder import Encoder
from vitrail.evals.gallery import neighbours_figure
from vitrail.evals.knn import TAU, K, knn_accuracy
from vitrail.evals.linear import linear_accuracy, linear_k_per_class
from vitrail.evals.pca import pca_figure
from vitrail.evals.saliency import saliency_figure
from vitrail.evals.xray import EPS, xray
from vitrail.evals.xray_figure import layers_figure, layers_table
from vitrail.nn.random import philox

Array = np.ndarray
KINDS = ("raw", "untrained", "trained")
XRAY_IMAGES = 32


@dataclass(frozen=True)
class Settings:
    """What changes the numbers. k, tau: k-NN's. draws: of the labelled subset. seed: of both draws
    and pictures. pictures: images in each figure."""

    k: int = K
    tau: float = TAU
    draws: int = 10
    seed: int = 0
    pictures: int = 8


@dataclass(frozen=True)
class Split:
    """features: "raw", "untrained", "trained" -> float32 [N, D]; labels: [N], -1 where there is
    none; index: which sample of the source each row is."""

    source: Source
    features: dict[str, Array]
    labels: Array
    index: Array


@dataclass(frozen=True)
class Material:
    """What a protocol works on."""

    encoder: Encoder
    train: Split
    test: Split
    settings: Settings
    figures: Path
    device: str

    def chosen(self, count: int) -> list[int]:
        """The rows of the test split that are looked at one by one: the first `count`, drawn."""
        order = philox(self.settings.seed, "pictures", 0).permutation(len(self.test.labels))
        return order[:count].tolist()


class Protocol(NamedTuple):
    """One that needs no labels draws figures/NAME.png.

    run: gives numbers for evaluation.json, or None where there is only the figure. labels: it needs
    them, and its numbers are accuracies. features: it needs those of the whole data. table: shows
    numbers that are not accuracies.
    """

    run: Callable[[Material], Any]
    help: str
    labels: bool
    features: bool
    table: Callable[[Any], Table] | None = None


def _knn(m: Material) -> dict[str, float]:
    return {kind: _knn_of(m, kind, m.settings.tau) for kind in m.train.features}


def _knn_majority(m: Material) -> dict[str, float]:
    return {kind: _knn_of(m, kind, None) for kind in m.train.features}


def _knn_of(m: Material, kind: str, tau: float | None) -> float:
    bank, queries = m.train.features[kind], m.test.features[kind]
    k = m.settings.k
    return knn_accuracy(bank, m.train.labels, queries, m.test.labels, k, tau, m.device)


def _linear(m: Material) -> dict[str, float]:
    train, test, seed = m.train, m.test, m.settings.seed
    return {
        kind: linear_accuracy(
            x, train.labels, test.features[kind], test.labels, seed=seed, device=m.device
        )
        for kind, x in train.features.items()
    }


def _linear_10(m: Material) -> dict[str, dict[str, float]]:
    train, test, s = m.train, m.test, m.settings
    results = {}
    for kind, x in train.features.items():
        few = linear_k_per_class(
            x, train.labels, test.features[kind], test.labels, k=10, draws=s.draws, seed=s.seed
        )
        results[kind] = {"mean": few.mean, "std": few.std}
    return results


def _neighbours(m: Material) -> None:
    rows, train, test = m.chosen(m.settings.pictures)[:6], m.train, m.test
    neighbours_figure(
        m.encoder,
        train.source,
        train.features["trained"],
        train.index,
        test.source,
        test.features["trained"][rows],
        test.index[rows],
        m.figures / "neighbours.png",
    )


def _saliency(m: Material) -> None:
    saliency_figure(m.encoder, _images(m, m.settings.pictures), m.figures / "saliency.png")


def _pca(m: Material) -> None:
    pca_figure(m.encoder, _images(m, m.settings.pictures), m.figures / "pca.png")


def _xray(m: Material) -> dict[str, Any]:
    images = _images(m, XRAY_IMAGES)
    layers = {"untrained": xray(m.encoder.untrained(), images), "trained": xray(m.encoder, images)}
    layers_figure(layers, m.figures / "xray.png")
    return {"images": len(images), "eps": EPS, **layers}


def _images(m: Material, count: int) -> list[Any]:
    images = []
    for row in m.chosen(count):
        try:
            images.append(m.test.source.read(int(m.test.index[row])).image)
        except BadSampleError:
            continue
    if not images:
        raise ValueError(f"{m.test.source.spec}: none of the images chosen to look at can be read")
    return images


# name: run, help, needs labels, needs the features of all images, a table of its own
PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(
        _knn, "accuracy of 20 nearest neighbours, votes weighted by exp(cos / 0.07)", True, True
    ),
    "knn_majority": Protocol(
        _knn_majority, "the same with one vote each, as the book has it", True, True
    ),
    "linear": Protocol(
        _linear, "accuracy of a linear classifier on all labelled training images", True, True
    ),
    "linear_10_per_class": Protocol(
        _linear_10,
        "the same with 10 labelled images per class, mean and std of 10 draws",
        True,
        True,
    ),
    "neighbours": Protocol(
        _neighbours, "picture: the nearest training images of a few test images", False, True
    ),
    "saliency": Protocol(_saliency, "picture: what the last layer looks at", False, False),
    "pca": Protocol(_pca, "picture: principal components of patch features", False, False),
    "xray": Protocol(
        _xray,
        "numbers and picture, layer by layer: coding rate, compression, sparsity, coherence",
        False,
        False,
        layers_table,
    ),
}
