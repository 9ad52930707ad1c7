"""What predicted classes are worth."""

import numpy as np
from jaxtyping import Int64

from vitrail.data.contract import Metric

Array = np.ndarray


def score(
    predicted: Int64[Array, " M"], labels: Int64[Array, " M"], metric: Metric = "accuracy"
) -> float:
    """In [0, 1]. Both in class numbers; there is at least one.

    "accuracy": the fraction that is right. "mean_per_class": that fraction within each class of
    `labels`, averaged over these, as is usual where test classes differ much in size (flowers,
    pets, aircraft, Caltech-101; Kornblith et al. 2019, arXiv:1805.08974).
    """
    right = predicted == labels
    if metric == "accuracy":
        return float(right.mean())
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))
