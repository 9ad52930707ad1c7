"""Linear classification of frozen features, full and with few labels per class.

Features are standardised with the mean and deviation of the labelled part, and the strength of the
l2 penalty is chosen by cross-validation on that part; the test part is only ever scored.

Shape legend: N train rows · M test rows · D features · K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vitrail.evals.knn import check_labels
from vitrail.evals.probe import Probe, probe_accuracy
from vitrail.nn.random import philox

Array = np.ndarray

# sklearn's C, the inverse strength of the penalty summed over samples; strongest first.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
ONE_FOLD_ROWS = 1000  # from here on, one fold is held out once
# Above this many labelled rows lbfgs over all of them is slower than the minibatch probe.
LOGISTIC_MAX_ROWS = 10_000


@dataclass(frozen=True)
class FewLabels:
    """Test accuracy over draws of the labelled subset: mean and standard deviation (n - 1)."""

    mean: float
    std: float
    draws: tuple[float, ...]


def _fit(features: Array, labels: Array, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000).fit(features, labels)


def _log_likelihood(model: LogisticRegression, features: Array, labels: Array) -> float:
    """The mean log-probability of the true classes."""
    logits = model.decision_function(features)
    if logits.ndim == 1:  # two classes: sklearn gives the difference of their logits
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    true = logits[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    return float((true - logsumexp(logits, axis=1)).mean())


def choose_c(features: Float[Array, "N D"], labels: Int64[Array, " N"], seed: int = 0) -> float:
    """The C with the best held-out log-likelihood, over stratified folds (one, for many rows).

    The likelihood, not the accuracy: on a hundred rows the latter moves in steps that tie. The grid
    is climbed from the strongest penalty until the likelihood falls, as it has one maximum in
    practice. With a class of a single row there is nothing to hold out, and the answer is 1.
    """
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    splits = list(splitter.split(features, labels))
    splits = splits if len(labels) < ONE_FOLD_ROWS else splits[:1]
    best, best_score = C_GRID[0], -math.inf
    for c in C_GRID:
        models = [(_fit(features[fit], labels[fit], c), held) for fit, held in splits]
        scores = [_log_likelihood(m, features[held], labels[held]) for m, held in models]
        score = sum(scores) / len(scores)
        if score <= best_score:
            break
        best, best_score = c, score
    return best


def _logistic_accuracy(
    train: Array, labels: Array, test: Array, test_labels: Array, seed: int
) -> float:
    with threadpool_limits(1):  # threads that wait for each other cost more than they bring
        return _standardised_accuracy(train, labels, test, test_labels, seed)


def _standardised_accuracy(
    train: Array, labels: Array, test: Array, test_labels: Array, seed: int
) -> float:
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if train.shape[1] > train.shape[0]:
        # An l2-penalised fit lies in the span of its rows: rotating onto that span changes nothing
        # but the time.
        basis = np.linalg.svd(train, full_matrices=False)[2].T
        train, test = train @ basis, test @ basis
    model = _fit(train, labels, choose_c(train, labels, seed))
    return float((model.predict(test) == test_labels).mean())


def _check(labels: Array, test_labels: Array) -> None:
    check_labels(labels, "train")
    check_labels(test_labels, "test")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(labels)} train samples are of class {int(labels[0])}: "
            "a linear classifier needs at least two classes"
        )


def linear_accuracy(
    train: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M D"],
    test_labels: Int64[Array, " M"],
    *,
    seed: int = 0,
    device: str = "cpu",
) -> float:
    """Test accuracy, in [0, 1], of a linear classifier on all labelled rows.

    Up to 10,000 rows: logistic regression to convergence; above: the minibatch probe of `probe.py`.

    Raises:
        ValueError: empty or unlabelled data, or a single class.
    """
    _check(labels, test_labels)
    if len(train) > LOGISTIC_MAX_ROWS:
        return probe_accuracy(train, labels, test, test_labels, Probe(seed=seed), device)
    return _logistic_accuracy(train, labels, test, test_labels, seed)


def draw_per_class(labels: Int64[Array, " N"], k: int, seed: int, draw: int) -> Int64[Array, " n"]:
    """Indices of k rows of every class; a function of (seed, draw) and the labels alone."""
    order = philox(seed, "linear_k_per_class", draw).permutation(len(labels))
    classes = np.unique(labels)
    return np.sort(np.concatenate([order[labels[order] == c][:k] for c in classes])).astype(
        np.int64
    )


def linear_k_per_class(
    train: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M D"],
    test_labels: Int64[Array, " M"],
    *,
    k: int = 10,
    draws: int = 10,
    seed: int = 0,
) -> FewLabels:
    """Test accuracy of logistic regression on k labelled rows of every class, over random draws.

    The draws depend on the seed and the labels alone, so that encoders compared on the same data
    see the same labelled samples.

    Raises:
        ValueError: as `linear_accuracy`, or a class with fewer than k rows.
    """
    _check(labels, test_labels)
    if k < 1 or draws < 1:
        raise ValueError(f"k = {k} per class and {draws} draws: both must be at least 1")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < k:
        poorest = int(classes[counts.argmin()])
        raise ValueError(
            f"class {poorest} has {counts.min()} train samples, fewer than the {k} per class asked "
            "for: lower k or leave this protocol out"
        )
    accuracies = []
    for draw in range(draws):
        rows = draw_per_class(labels, k, seed, draw)
        accuracies.append(
            _logistic_accuracy(train[rows], labels[rows], test, test_labels, seed + draw)
        )
    deviation = float(np.std(accuracies, ddof=1)) if draws > 1 else 0.0
    return FewLabels(float(np.mean(accuracies)), deviation, tuple(accuracies))
