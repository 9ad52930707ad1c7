"""The protocols that need labels: each gives accuracies by kind of features, or a confusion matrix.

A kind is "raw", "untrained" or "trained"; fine-tuning has the last two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vitrail.encoder import Encoder
from vitrail.evals.classification.few_labels import SUBSET_SEEDS
from vitrail.evals.classification.finetune import finetune_accuracy
from vitrail.evals.classification.knn import check_labels, vote
from vitrail.evals.classification.linear import (
    FewLabels,
    few_labels,
    linear_accuracy,
    linear_k_per_class,
    linear_predict,
    linear_share,
)
from vitrail.evals.classification.scores import score
from vitrail.evals.contract import Material
from vitrail.evals.features import Embed, FeatureChoices, collect
from vitrail.evals.figures.confusion import confusion_figure

Array = np.ndarray
PER_CLASS = 10


def knn(m: Material) -> dict[str, Any]:
    """With votes weighted by similarity. Several k: also "by_k", the same for each of them."""
    return _by_k(m, m.settings.tau)


def knn_majority(m: Material) -> dict[str, Any]:
    """With one vote each."""
    return _by_k(m, None)


def _by_k(m: Material, tau: float | None) -> dict[str, Any]:
    found = {k: _at_k(m, k, tau) for k in (m.settings.k, *m.settings.more_k)}
    first: dict[str, Any] = found[m.settings.k]
    if len(found) == 1:
        return first
    return first | {"by_k": {str(k): found[k] for k in sorted(found)}}


def _at_k(m: Material, k: int, tau: float | None) -> dict[str, float]:
    metric = m.metric
    return {
        kind: score(_votes(m, kind, k, tau), m.test.labels, metric) for kind in m.train.features
    }


def _votes(m: Material, kind: str, k: int, tau: float | None) -> Array:
    similarity, labels = m.nearest(kind)
    return vote(similarity[:, :k], labels[:, :k], int(m.train.labels.max()) + 1, tau)


def linear(m: Material) -> dict[str, float]:
    """On all labels, of the pooled feature."""
    s = m.settings
    return {
        kind: linear_accuracy(*_four(m, kind), seed=s.seed, device=m.device, metric=m.metric)
        for kind in m.train.features
    }


def linear_per_class(m: Material) -> dict[str, dict[str, float]]:
    """On 10 labels of every class."""
    s = m.settings
    return {
        kind: _plain(
            linear_k_per_class(
                *_four(m, kind), k=PER_CLASS, draws=s.draws, seed=s.seed, metric=m.metric
            )
        )
        for kind in m.train.features
    }


def linear_of_share(share: float) -> Callable[[Material], dict[str, dict[str, float]]]:
    """On a share of the labels, with the subsets of SUBSET_SEEDS."""

    def run(m: Material) -> dict[str, dict[str, float]]:
        metric = m.metric
        return {
            kind: _plain(linear_share(*_four(m, kind), share=share, device=m.device, metric=metric))
            for kind in m.train.features
        }

    return run


def _four(m: Material, kind: str) -> tuple[Array, Array, Array, Array]:
    return m.train.features[kind], m.train.labels, m.test.features[kind], m.test.labels


def _plain(few: FewLabels) -> dict[str, float]:
    return {"mean": few.mean, "std": few.std}


def linear_sweep(m: Material) -> dict[str, Any]:
    """On all labels, of the features that predict held-out train rows best, which "chosen" names.

    Both splits are read once more. All choices lie in one float32 table, with (1 + last_blocks) D
    columns for each kind of encoder.
    """
    check_labels(m.test.labels, "test")
    encoders = {"untrained": m.encoder.untrained(), "trained": m.encoder}
    result: dict[str, Any] = {}
    chosen = {}
    for kind in m.train.features:
        if kind in encoders:
            columns, train, test = _choices(m, encoders[kind])
        else:
            columns = {"pixels": slice(None)}
            train, test = m.train.features[kind], m.test.features[kind]
        found = linear_predict(
            train, m.train.labels, test, choices=columns, seed=m.settings.seed, device=m.device
        )
        result[kind] = score(found.predicted, m.test.labels, m.metric)
        chosen[kind] = f"{found.choice}, {found.setting}"
    return result | {"chosen": chosen}


def _choices(m: Material, encoder: Encoder) -> tuple[dict[str, slice], Array, Array]:
    choices = FeatureChoices(encoder, m.settings.last_blocks)
    embeds: dict[str, Embed] = {"all": choices.embed}
    train, test = (
        collect(encoder.preprocess, embeds, split.source, split.quarantine, workers=m.workers)[0]
        for split in (m.train, m.test)
    )
    return choices.columns, train["all"], test["all"]


def finetuned(share: float) -> Callable[[Material], dict[str, Any]]:
    """With a share of the labels: all (one run), or the subsets of SUBSET_SEEDS (mean and std)."""

    def run(m: Material) -> dict[str, Any]:
        encoders = {"untrained": m.encoder.untrained(), "trained": m.encoder}
        if share == 1:
            return {kind: _finetuned(m, e, 1.0, m.settings.seed) for kind, e in encoders.items()}
        return {
            kind: _plain(few_labels([_finetuned(m, e, share, seed) for seed in SUBSET_SEEDS]))
            for kind, e in encoders.items()
        }

    return run


def _finetuned(m: Material, encoder: Encoder, share: float, seed: int) -> float:
    return finetune_accuracy(
        encoder,
        m.train.source,
        m.test.source,
        m.settings.finetune,
        share=share,
        seed=seed,
        device=m.device,
        workers=m.workers,
        metric=m.metric,
        quarantines=(m.train.quarantine, m.test.quarantine),
    )


def confusion(m: Material) -> None:
    """figures/confusion.png, of the classes that `knn` predicts from trained features."""
    predicted = _votes(m, "trained", m.settings.k, m.settings.tau)
    classes = m.train.source.classes
    names = [] if classes is None else [str(name) for name in classes]
    confusion_figure(predicted, m.test.labels, names, m.figures / "confusion.png")
