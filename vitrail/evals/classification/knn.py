"""k-nearest-neighbour classification of frozen features: exact, with bounded memory.

Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4: each of the k neighbours with the highest
cosine similarity s votes for its class with weight exp(s / tau), tau = 0.07. `tau=None` is a plain
majority vote.

Shape legend: N bank rows · M queries · D features · Q queries of a chunk · P bank rows of a chunk ·
G groups of a chunk · B queries of a block · K neighbours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vitrail.evals.classification.scores import score
from vitrail.evals.classification.search import K, neighbours
from vitrail.evals.contract import Context

Array = np.ndarray

TAU = 0.07


@dataclass(frozen=True)
class Knn:
    """The settings of k-nearest-neighbour classification.

    Attributes:
        k: neighbours that vote, at least 1.
        more_k: other numbers of neighbours to measure too.
        tau: temperature of the votes' weights exp(cosine / tau), above 0.
    """

    k: int = K
    more_k: tuple[int, ...] = ()
    tau: float = TAU

    def __post_init__(self) -> None:
        if low := [k for k in (self.k, *self.more_k) if k < 1]:
            raise ValueError(f"k = {low[0]}: k-NN needs at least one neighbour")
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau}: it must be above 0")


def knn(context: Context, config: Knn) -> dict[str, Any]:
    """Measures accuracies by kind, votes weighted; "by_k" holds them for each k of several."""
    return _by_k(context, config, config.tau)


def knn_majority(context: Context, config: Knn) -> dict[str, Any]:
    """Measures the same with one vote each."""
    return _by_k(context, config, None)


def _by_k(context: Context, config: Knn, tau: float | None) -> dict[str, Any]:
    found = {
        k: {
            kind: score(votes(context, kind, config, k, tau), context.test.labels, context.metric)
            for kind in context.train.features
        }
        for k in (config.k, *config.more_k)
    }
    first: dict[str, Any] = found[config.k]
    if len(found) == 1:
        return first
    return first | {"by_k": {str(k): found[k] for k in sorted(found)}}


def votes(
    context: Context, kind: str, config: Knn, k: int, tau: float | None
) -> Int64[np.ndarray, " M"]:
    """Returns the classes that k neighbours give the test images, by features of a kind."""
    similarity, labels = nearest(context, kind, max(config.k, *config.more_k, 0))
    return vote(similarity[:, :k], labels[:, :k], int(context.train.labels.max()) + 1, tau)


def nearest(
    context: Context, kind: str, count: int
) -> tuple[Float32[np.ndarray, "M K"], Int64[np.ndarray, "M K"]]:
    """Returns similarities and labels of the `count` nearest train rows of every test row.

    They are found once for all protocols. Raises ValueError if labels are missing.
    """
    train, test = context.train, context.test
    check_labels(train.labels, "train")
    check_labels(test.labels, "test")
    key = ("nearest", kind, count)
    if key not in context.cache:
        similarity, index = neighbours(
            train.features[kind], test.features[kind], count, device=context.device
        )
        context.cache[key] = similarity, train.labels[index]
    found: tuple[np.ndarray, np.ndarray] = context.cache[key]
    return found


def vote(
    similarity: Float32[Array, "M K"],
    neighbour_labels: Int64[Array, "M K"],
    n_classes: int,
    tau: float | None = TAU,
) -> Int64[Array, " M"]:
    """Returns the class with the most votes for each query; the lowest one of a tie.

    Args:
        similarity: cosine similarities of the neighbours, descending, float32 [M, K].
        neighbour_labels: classes of the neighbours, int64 [M, K].
        n_classes: number of classes.
        tau: temperature of the weights exp(similarity / tau); None for plain majority.

    Raises:
        ValueError: a temperature of 0 or below.
    """
    if tau is not None and tau <= 0:
        raise ValueError(f"tau = {tau}: the temperature must be above 0 (or None for majority)")
    weights = np.ones(similarity.shape)
    if tau is not None:
        # relative to the nearest neighbour: a common factor changes no vote and avoids overflow
        weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / tau)
    predicted = np.empty(len(similarity), dtype=np.int64)
    for start in range(0, len(similarity), 1024):
        rows = slice(start, start + 1024)
        votes = np.zeros((len(weights[rows]), n_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], neighbour_labels[rows]), weights[rows])
        predicted[rows] = votes.argmax(axis=1)
    return predicted


def check_labels(labels: Int64[Array, " N"], what: str) -> None:
    """Checks that every row has a class.

    Args:
        labels: classes, -1 for none, int64 [N].
        what: name of the split, for the message.

    Raises:
        ValueError: no rows, or rows without a label.
    """
    if len(labels) == 0:
        raise ValueError(f"the {what} set is empty: there is nothing to evaluate")
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} {what} samples have no label, and this protocol needs "
            "labels; evaluate on labelled data, or ask for pictures only (saliency, pca)"
        )


def knn_predict(
    bank: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    queries: Float32[Array, "M _"],
    k: int = K,
    tau: float | None = TAU,
    device: str = "cpu",
) -> Int64[Array, " M"]:
    """Predicts the classes of the queries by the votes of their k nearest neighbours in the bank.

    A bank of a single class predicts that class.

    Args:
        bank: features of the train samples, float32 [N, D].
        labels: classes of the bank's rows, int64 [N].
        queries: features of the samples to classify, float32 [M, D].
        k: number of neighbours.
        tau: temperature of the votes; None for plain majority.
        device: torch device of the search.

    Raises:
        ValueError: as `neighbours` and `vote`, and for an unlabelled bank.
    """
    check_labels(labels, "train")
    similarity, index = neighbours(bank, queries, k, device=device)
    return vote(similarity, labels[index], int(labels.max()) + 1, tau)


def knn_accuracy(
    bank: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    queries: Float32[Array, "M _"],
    query_labels: Int64[Array, " M"],
    k: int = K,
    tau: float | None = TAU,
    device: str = "cpu",
) -> float:
    """Returns the fraction of queries that `knn_predict` classifies correctly, in [0, 1].

    A query of a class that is absent from the bank counts as wrong. Arguments and errors are those
    of `knn_predict`, with the classes of the queries, int64 [M].
    """
    check_labels(query_labels, "test")
    return float((knn_predict(bank, labels, queries, k, tau, device) == query_labels).mean())
