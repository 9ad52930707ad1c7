"""Linear classification of frozen features with few labels.

Shape legend: N train rows · M test rows · D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from vitrail.data.contract import Metric
from vitrail.evals.classification.few_labels import (
    SUBSET_SEEDS,
    FewLabels,
    draw_per_class,
    draw_share,
    few_labels,
    mean_and_std,
)
from vitrail.evals.classification.linear import four_tables, linear_accuracy, require_classes
from vitrail.evals.contract import Context

Array = np.ndarray

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
    require_classes(labels)
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
    require_classes(labels)
    chosen = {seed: draw_share(labels, share, seed) for seed in seeds}
    return few_labels(
        [
            linear_accuracy(
                train[rows], labels[rows], test, test_labels, seed=s, device=device, metric=metric
            )
            for s, rows in chosen.items()
        ]
    )


def linear_10_per_class(context: Context, config: Linear) -> dict[str, dict[str, float]]:
    """Measures means and deviations by kind, over draws of 10 labels per class."""
    return {
        kind: mean_and_std(
            linear_k_per_class(
                *four_tables(context, kind),
                k=PER_CLASS,
                draws=config.draws,
                seed=context.seed,
                metric=context.metric,
            )
        )
        for kind in context.train.features
    }


def linear_1_percent(context: Context) -> dict[str, dict[str, float]]:
    """Measures means and deviations by kind, over the subsets of 1 % of the labels."""
    return _of_share(context, 0.01)


def linear_10_percent(context: Context) -> dict[str, dict[str, float]]:
    """Measures the same with 10 %."""
    return _of_share(context, 0.1)


def _of_share(context: Context, share: float) -> dict[str, dict[str, float]]:
    found = {}
    for kind in context.train.features:
        tables = four_tables(context, kind)
        few = linear_share(*tables, share=share, device=context.device, metric=context.metric)
        found[kind] = mean_and_std(few)
    return found
