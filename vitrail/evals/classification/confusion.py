"""Which classes k-NN takes for which.

Shape legend: M test samples.
"""

import numpy as np
from jaxtyping import Int64

from vitrail.evals.classification.knn import Knn, votes
from vitrail.evals.contract import Context
from vitrail.evals.figures.confusion import confusion_figure


def draw_confusion(context: Context, config: Knn) -> None:
    """Draws figures/confusion.png, of the classes that `knn` predicts from trained features."""
    predicted = votes(context, "trained", config, config.k, config.tau)
    names = [str(name) for name in context.train.source.classes or ()]
    counts = np.zeros((0, 0), dtype=np.int64)
    if names:
        counts = confusion_matrix(predicted, context.test.labels, len(names))
    confusion_figure(counts, names, context.figures / "confusion.png")


def confusion_matrix(
    predicted: Int64[np.ndarray, " M"], labels: Int64[np.ndarray, " M"], n_classes: int
) -> Int64[np.ndarray, "n_classes n_classes"]:
    """Counts the samples of class i that were predicted as class j, as entry (i, j)."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)
