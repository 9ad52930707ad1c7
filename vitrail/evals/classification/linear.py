"""Linear classification of frozen features, with all labels or few.

Features are standardised with the mean and standard deviation of the labelled rows. The strength of
the l2 penalty, and in the sweep also the choice of features, is selected by cross-validation on
these rows. The test rows are only scored.

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

# scikit-learn's C, the inverse strength of the penalty summed over samples; strongest first
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
ONE_FOLD_ROWS = 1000  # rows from which on a single fold is held out, to save time
# labelled rows above which L-BFGS over all of them is slower than the minibatch probe
LOGISTIC_MAX_ROWS = 10_000


@dataclass(frozen=True)
class FewLabels:
    """Test accuracy over random draws of the labelled subset.

    Attributes:
        mean: mean accuracy over the draws, in [0, 1].
        std: sample standard deviation (n - 1) over the draws; 0 for a single draw.
        draws: accuracy of each draw, in [0, 1].
    """

    mean: float
    std: float
    draws: tuple[float, ...]


def _fit(features: Array, labels: Array, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000).fit(features, labels)


def _log_likelihood(model: LogisticRegression, features: Array, labels: Array) -> float:
    """Returns the mean log-probability of the true classes, in nats."""
    logits = model.decision_function(features)
    if logits.ndim == 1:  # for two classes scikit-learn returns the difference of their logits
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    true = logits[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    return float((true - logsumexp(logits, axis=1)).mean())


def choose_c(
    features: Float[Array, "N D"], labels: Int64[Array, " N"], seed: int = 0
) -> tuple[float, float]:
    """Selects C by the held-out log-likelihood over stratified folds (one fold for many rows).

    The criterion is the likelihood, not the accuracy: on about a hundred rows the accuracy has few
    distinct values, so ties are common. The grid is searched from the strongest penalty until the
    likelihood falls, as it has one maximum in practice.

    Args:
        features: standardised features, [N, D].
        labels: classes, int64 [N].
        seed: seed of the shuffle before the split into folds.

    Returns:
        the C, and its held-out log-likelihood (the mean over rows, in nats); 1 and minus infinity
        where a class has a single row, as nothing can be held out then.
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
    """The predictions of a linear classifier on the selected features.

    Attributes:
        predicted: classes of the test rows, int64 [M].
        choice: name of the selected features.
        setting: selected strength of the penalty ("C=0.01") or learning rate ("lr=0.003").
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
    """Predicts the classes of the test rows with a linear classifier trained on all train rows.

    Up to 10,000 rows: logistic regression to convergence, for each choice of features; above: the
    minibatch probe of `sgd_probe.py`. Penalty, learning rate and features are selected by the
    likelihood of held-out train rows. If nothing can be held out, the first choice is used.

    Args:
        train: features of the train rows, float32 [N, E].
        labels: classes of the train rows, int64 [N].
        test: features of the test rows, float32 [M, E].
        choices: columns of the table to classify by, for each name.
        seed: seed of the folds, and of the probe's order of rows.
        device: torch device of the probe.

    Raises:
        ValueError: empty or unlabelled train rows, or a single class.
    """
    _check(labels)
    if len(train) > LOGISTIC_MAX_ROWS:
        head = fit_probe(train, labels, Probe(seed=seed), device, choices)
        return Found(probe_predict(head, test), head.choice, f"lr={head.lr:g}")
    with threadpool_limits(
        1
    ):  # on matrices this small, synchronising threads costs more than it saves
        found = {
            name: _logistic(train[:, columns], labels, test[:, columns], seed)
            for name, columns in choices.items()
        }
    name = max(found, key=lambda name: found[name][2])
    predicted, c, _ = found[name]
    return Found(predicted.astype(np.int64), name, f"C={c:g}")


def _logistic(train: Array, labels: Array, test: Array, seed: int) -> tuple[Array, float, float]:
    """Fits on standardised features; returns (predicted classes, C, held-out log-likelihood)."""
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if train.shape[1] > train.shape[0]:
        # an l2-penalised solution lies in the span of the rows: projecting onto it only saves time
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
    """Returns the test accuracy, in [0, 1], of `linear_predict` on all the features.

    Args:
        train: features of the train rows, float32 [N, D].
        labels: classes of the train rows, int64 [N].
        test: features of the test rows, float32 [M, D].
        test_labels: classes of the test rows, int64 [M].
        seed: as in `linear_predict`.
        device: torch device of the probe.
        metric: "accuracy" or "mean_per_class", as in `score`.

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
    """Returns the test accuracy with k labelled rows of every class, over random draws.

    The draws depend on the seed and the labels alone, so encoders compared on the same data are
    given the same labelled samples. Other arguments are those of `linear_accuracy`.

    Args:
        k: labelled rows of each class, at least 1.
        draws: number of random draws, at least 1.
        seed: seed of the first draw; the classifier of draw i has seed + i.

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
    """Returns the test accuracy of `linear_predict` with a share of the labels of every class.

    Other arguments are those of `linear_accuracy`.

    Args:
        share: share of the rows of each class, in (0, 1]; at least one row of each is drawn.
        seeds: one draw for each seed.

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
    """Returns the mean and sample standard deviation of the accuracies of several draws."""
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
