"""Random subsets of labelled samples, and accuracies over several of them.

The subsets depend on the labels and a seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from vitrail.nn.random import philox

Array = np.ndarray

# fixed seeds of the 1 % and 10 % subsets, independent of the evaluation's seed
SUBSET_SEEDS = (0, 1, 2)


def draw_per_class(labels: Int64[Array, " N"], k: int, seed: int, draw: int) -> Int64[Array, " n"]:
    """Returns sorted indices of k random rows of each class, or all of a class with fewer.

    Args:
        labels: classes, int64 [N].
        k: rows of each class.
        seed: seed of the evaluation.
        draw: number of the draw, from 0.
    """
    order = philox(seed, "linear_k_per_class", draw).permutation(len(labels))
    classes = np.unique(labels)
    return np.sort(np.concatenate([order[labels[order] == c][:k] for c in classes])).astype(
        np.int64
    )


def draw_share(labels: Int64[Array, " N"], share: float, seed: int) -> Int64[Array, " n"]:
    """Returns sorted indices of a random share of each class, rounded, at least one row of each.

    A pure function of the arguments. The subset of a smaller share of the same seed is contained in
    that of a larger one. Rows without a label (below 0) are never drawn.

    Args:
        labels: classes, -1 for none, int64 [N].
        share: share of the rows of each class, in (0, 1].
        seed: seed of the draw.

    Raises:
        ValueError: a share outside (0, 1], or no labelled row.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} of the labels; it must be above 0 and at most 1")
    if not (labels >= 0).any():
        raise ValueError(f"none of the {len(labels)} rows has a label to draw")
    order = philox(seed, "label_share", 0).permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")  # stable: keeps the drawn order in a class
    order = order[by_class]
    classes, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    parts = [
        order[start : start + max(1, round(count * share))]
        for label, start, count in zip(classes, first, counts.tolist(), strict=True)
        if label >= 0
    ]
    return np.sort(np.concatenate(parts)).astype(np.int64)


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


def few_labels(accuracies: Sequence[float]) -> FewLabels:
    """Returns the mean and sample standard deviation of the accuracies of several draws."""
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return FewLabels(float(np.mean(accuracies)), deviation, tuple(accuracies))


def mean_and_std(few: FewLabels) -> dict[str, float]:
    """Returns the two numbers of evaluation.json."""
    return {"mean": few.mean, "std": few.std}
