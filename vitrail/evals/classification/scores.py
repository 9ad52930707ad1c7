"""Scores of predicted classes: accuracy, and accuracy averaged over classes."""

import numpy as np
from jaxtyping import Int64

from vitrail.data.contract import Metric

Array = np.ndarray


def score(
    predicted: Int64[Array, " M"], labels: Int64[Array, " M"], metric: Metric = "accuracy"
) -> float:
    """Returns the score of predictions, in [0, 1].

    Args:
        predicted: predicted classes, int64 [M], at least one.
        labels: true classes, int64 [M].
        metric: "accuracy" is the fraction that is correct. "mean_per_class" is that fraction within
            each class of `labels`, averaged over classes, as is usual where test classes differ
            much in size (flowers, pets, aircraft, Caltech-101; Kornblith et al. 2019,
            arXiv:1805.08974).
    """
    right = predicted == labels
    if metric == "accuracy":
        return float(right.mean())
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))
