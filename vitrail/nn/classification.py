"""Classification by given labels: what the supervised objective and DeepCluster share.

Shape legend: B samples of this slice · C classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.distributed.collectives import sum_over_ranks, world_size

UNLABELLED = -1  # the label of a sample that has none


class Classified(NamedTuple):
    """loss: float32, nats. accuracy: of the most likely class, in [0, 1], without a gradient."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def classify(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], label_smoothing: float = 0.0
) -> Classified:
    """Cross-entropy with s = label_smoothing, a mean over the labelled samples of all ranks:

        CE((1 - s) · onehot(y) + s / C, softmax(logits))

    The mean of the ranks' values is that mean, also where ranks have more or fewer labels. Samples
    labelled UNLABELLED count in neither value; both are 0 where there is no other.
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
    # The ranks' losses are averaged afterwards, so each divides by the mean count of a rank.
    labelled = sum_over_ranks((labels != UNLABELLED).sum()).clamp(min=1) / world_size()
    correct = (logits.detach().argmax(-1) == labels).sum()
    return Classified(total / labelled, correct / labelled)
