"""Linear classification of frozen features, full and with few labels.

Features are standardised with the mean and deviation of the labelled part, and what is to be chosen
(the strength of the l2 penalty; in the sweep which features too) is chosen by cross-validation on
that part. The test part is only ever scored.

Shape legend: N train rows · M test rows · D features · E columns of a table of choices · K classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vitrail.data.contract import Metric
from vitrail.evals.classification.few_labels import SUBSET_SEEDS, draw_per_class, draw_share
from vitrail.evals.classification.knn import check_labels
from vitrail.evals.classification.scores import score
from vitrail.evals.classification.sgd_probe import EVERYTHING, Probe, fit_probe, probe_predict
from vitrail.evals.contract import Context

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


def choose_c(
    features: Float[Array, "N D"], labels: Int64[Array, " N"], seed: int = 0
) -> tuple[float, float]:
    """The C with the best held-out log-likelihood, and that (the mean of a row, in nats).

    Over stratified folds (one, for many rows). The likelihood, not the accuracy: on a hundred rows
    the latter moves in steps that tie. The grid is climbed from the strongest penalty until the
    likelihood falls, as it has one maximum in practice. With a class of a single row there is
    nothing to hold out, and the answer is 1, with a likelihood of minus infinity.
    """
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0, -math.inf
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    splits = list(splitter.split(features, labels))
    splits = splits if len(labels) < ONE_FOLD_ROWS else splits[:1]
    best, best_score = C_GRID[0], -math.inf
    for c in C_GRID:
        models = [(_fit(features[fit], labels[fit], c), held) for fit, held in splits]
        scores = [_log_likelihood(m, features[held], labels[held]) for m, held in models]
        mean = sum(scores) / len(scores)
        if mean <= best_score:
            break
        best, best_score = c, mean
    return best, best_score


@dataclass(frozen=True)
class Found:
    """What a linear classifier of the best choice of features says.

    predicted: classes of the test rows [M]. choice: the name of the features. setting: the chosen
    strength of the penalty ("C=0.01") or learning rate ("lr=0.003").
    """

    predicted: Array
    choice: str
    setting: str


def linear_predict(
    train: Float32[Array, "N E"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M E"],
    *,
    choices: Mapping[str, slice] = EVERYTHING,
    seed: int = 0,
    device: str = "cpu",
) -> Found:
    """Classes of the test rows by a linear classifier of all train rows.

    Up to 10,000 rows: logistic regression to convergence, for each choice of features; above: the
    minibatch probe of `probe.py`. Penalty, learning rate and features are chosen by the likelihood
    of held-out train rows. Where nothing can be held out, the first choice is taken.

    Args:
        choices: by name, columns of the table to classify by.

    Raises:
        ValueError: empty or unlabelled train rows, or a single class.
    """
    _check(labels)
    if len(train) > LOGISTIC_MAX_ROWS:
        head = fit_probe(train, labels, Probe(seed=seed), device, choices)
        return Found(probe_predict(head, test), head.choice, f"lr={head.lr:g}")
    with threadpool_limits(1):  # threads that wait for each other cost more than they bring
        found = {
            name: _logistic(train[:, columns], labels, test[:, columns], seed)
            for name, columns in choices.items()
        }
    name = max(found, key=lambda name: found[name][2])
    predicted, c, _ = found[name]
    return Found(predicted.astype(np.int64), name, f"C={c:g}")


def _logistic(train: Array, labels: Array, test: Array, seed: int) -> tuple[Array, float, float]:
    """(predicted classes, C, held-out log-likelihood) of standardised features."""
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if train.shape[1] > train.shape[0]:
        # An l2-penalised fit lies in the span of its rows: rotating onto that span changes nothing
        # but the time.
        basis = np.linalg.svd(train, full_matrices=False)[2].T
        train, test = train @ basis, test @ basis
    c, likelihood = choose_c(train, labels, seed)
    return _fit(train, labels, c).predict(test), c, likelihood


def _check(labels: Array) -> None:
    check_labels(labels, "train")
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
    metric: Metric = "accuracy",
) -> float:
    """Test accuracy, in [0, 1], of `linear_predict` on all the features.

    Raises:
        ValueError: empty or unlabelled data, or a single class.
    """
    check_labels(test_labels, "test")
    found = linear_predict(train, labels, test, seed=seed, device=device)
    return score(found.predicted, test_labels, metric)


def linear_k_per_class(
    train: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M D"],
    test_labels: Int64[Array, " M"],
    *,
    k: int = 10,
    draws: int = 10,
    seed: int = 0,
    metric: Metric = "accuracy",
) -> FewLabels:
    """Test accuracy of logistic regression on k labelled rows of every class, over random draws.

    The draws depend on the seed and the labels alone, so that encoders compared on the same data
    see the same labelled samples.

    Raises:
        ValueError: as `linear_accuracy`, or a class with fewer than k rows.
    """
    _check(labels)
    if k < 1 or draws < 1:
        raise ValueError(f"k = {k} per class and {draws} draws: both must be at least 1")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < k:
        poorest = int(classes[counts.argmin()])
        raise ValueError(
            f"class {poorest} has {counts.min()} train samples, fewer than the {k} per class asked "
            "for: lower k or leave this protocol out"
        )
    chosen = {seed + draw: draw_per_class(labels, k, seed, draw) for draw in range(draws)}
    return few_labels(
        [
            linear_accuracy(train[r], labels[r], test, test_labels, seed=s, metric=metric)
            for s, r in chosen.items()
        ]
    )


def linear_share(
    train: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    test: Float32[Array, "M D"],
    test_labels: Int64[Array, " M"],
    *,
    share: float,
    seeds: Sequence[int] = SUBSET_SEEDS,
    device: str = "cpu",
    metric: Metric = "accuracy",
) -> FewLabels:
    """Test accuracy of `linear_predict` with a share of the labels of every class, one or more.

    Raises:
        ValueError: as `linear_accuracy`, or a share outside (0, 1].
    """
    _check(labels)
    chosen = {seed: draw_share(labels, share, seed) for seed in seeds}
    return few_labels(
        [
            linear_accuracy(
                train[rows], labels[rows], test, test_labels, seed=s, device=device, metric=metric
            )
            for s, rows in chosen.items()
        ]
    )


def few_labels(accuracies: Sequence[float]) -> FewLabels:
    """Mean and sample deviation (0 for a single draw)."""
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return FewLabels(float(np.mean(accuracies)), deviation, tuple(accuracies))


PER_CLASS = 10  # labels of `linear_10_per_class`


@dataclass(frozen=True)
class Linear:
    """The settings of the linear classifier with few labels.

    Attributes:
        draws: random choices of the 10 labelled images per class, at least 1.
    """

    draws: int = 10

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws}: it must be at least 1")


def linear(context: Context) -> dict[str, float]:
    """Measures accuracies by kind, with all labels."""
    return {
        kind: linear_accuracy(
            *_features(context, kind),
            seed=context.seed,
            device=context.device,
            metric=context.metric,
        )
        for kind in context.train.features
    }


def linear_10_per_class(context: Context, config: Linear) -> dict[str, dict[str, float]]:
    """Measures means and deviations by kind, over draws of 10 labels per class."""
    return {
        kind: linear_k_per_class(
            *_features(context, kind),
            k=PER_CLASS,
            draws=config.draws,
            seed=context.seed,
            metric=context.metric,
        ).summary()
        for kind in context.train.features
    }


def linear_1_percent(context: Context) -> dict[str, dict[str, float]]:
    """Measures means and deviations by kind, over the subsets of 1 % of the labels."""
    return _of_share(context, 0.01)


def linear_10_percent(context: Context) -> dict[str, dict[str, float]]:
    """Measures the same with 10 %."""
    return _of_share(context, 0.1)


def _of_share(context: Context, share: float) -> dict[str, dict[str, float]]:
    return {
        kind: linear_share(
            *_features(context, kind), share=share, device=context.device, metric=context.metric
        ).summary()
        for kind in context.train.features
    }


def _features(context: Context, kind: str) -> tuple[Array, Array, Array, Array]:
    train, test = context.train, context.test
    return train.features[kind], train.labels, test.features[kind], test.labels
