"""Linear classification of frozen features, with all labels.

Features are standardised with the mean and standard deviation of the labelled rows. The strength of
the l2 penalty, and in the sweep also the choice of features, is selected by cross-validation on
these rows. The test rows are only scored.

Shape legend: N train rows · M test rows · D features · E columns of a table of choices · K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vitrail.data.contract import Metric
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
    require_classes(labels)
    if len(train) > LOGISTIC_MAX_ROWS:
        head = fit_probe(train, labels, Probe(seed=seed), device, choices)
        return Found(probe_predict(head, test), head.choice, f"lr={head.lr:g}")
    # on matrices this small, synchronising threads costs more than it saves
    with threadpool_limits(1):
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


def require_classes(labels: Int64[Array, " N"]) -> None:
    """Raises ValueError for rows without a label, or of a single class."""
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


def linear(context: Context) -> dict[str, float]:
    """Measures accuracies by kind, with all labels."""
    return {
        kind: linear_accuracy(
            *four_tables(context, kind),
            seed=context.seed,
            device=context.device,
            metric=context.metric,
        )
        for kind in context.train.features
    }


def four_tables(context: Context, kind: str) -> tuple[Array, Array, Array, Array]:
    """Returns train features and labels, and test features and labels, of a kind."""
    train, test = context.train, context.test
    return train.features[kind], train.labels, test.features[kind], test.labels
