"""Cross-entropy with given labels, shared by the supervised objective and DeepCluster.

Shape legend: B samples of this slice · C classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.distributed.collectives import sum_over_ranks, world_size

UNLABELLED = -1  # label of a sample without one


class Classified(NamedTuple):
    """The result of `classify`.

    Attributes:
        loss: mean cross-entropy in nats, float32.
        accuracy: share of samples whose most likely class is their label, in [0, 1], without a
            gradient.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def classify(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], label_smoothing: float = 0.0
) -> Classified:
    """Returns the cross-entropy, a mean over the labelled samples of all ranks, and the accuracy.

    With s = label_smoothing the cross-entropy of a sample is

        CE((1 - s) · onehot(y) + s / C, softmax(logits))

    The mean of the ranks' values is the mean over all ranks' samples, also if ranks have different
    numbers of labels. Samples labelled UNLABELLED count in neither value; without labelled samples
    both are 0.

    Args:
        logits: scores of the classes.
        labels: class numbers in [0, C), or UNLABELLED.
        label_smoothing: s, in [0, 1).
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
    # by the mean count of a rank, because the ranks' losses are averaged afterwards
    labelled = sum_over_ranks((labels != UNLABELLED).sum()).clamp(min=1) / world_size()
    correct = (logits.detach().argmax(-1) == labels).sum()
    return Classified(total / labelled, correct / labelled)
