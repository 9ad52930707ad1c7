"""Queues of features of earlier batches, which make a batch look larger than it is.

Used by SwAV (Caron et al. 2020, section 3.1 and appendix A.1); MoCo's queue of keys is of the same
kind (He et al. 2020, section 3.1).

A queue is a plain tensor [..., Q, P], the newest rows first, so an objective registers it as a
buffer under a name of its own and checkpoints hold it. Every rank holds the whole queue.

Shape legend: Q rows of a queue · B rows of a rank · P dimensions of a row.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.distributed.collectives import all_gather, rank, world_size


def empty_queue(*shape: int) -> Float[Tensor, "*shape"]:
    """Returns a queue of zeros; the last two sizes are Q and P: (2, Q, P) for two queues."""
    return torch.zeros(*shape)


@torch.no_grad()
def push(queue: Float[Tensor, "*views Q P"], rows: Float[Tensor, "*views B P"]) -> None:
    """Puts the rows of all ranks at the front of a queue, in place; the oldest rows drop out.

    A collective call: every rank gives as many rows, which are ordered by rank. Of rows that are
    more than the queue holds, the first Q stay.

    Args:
        queue: float32 [..., Q, P], the newest rows first.
        rows: float32 [..., B, P], of this rank.
    """
    gathered = all_gather(rows.detach().movedim(-2, 0)).movedim(0, -2)
    queue.copy_(torch.cat([gathered, queue], dim=-2).narrow(-2, 0, queue.shape[-2]))


def share_of_rank(queue: Float[Tensor, "*views Q P"]) -> Float[Tensor, "*views q P"]:
    """Returns this rank's share of the rows, for a loss that sums over ranks by itself.

    Shares differ by one row at most where the ranks do not divide Q.
    """
    return queue.tensor_split(world_size(), dim=-2)[rank()]


def is_full(queue: Float[Tensor, "*views Q P"], pushes: int, rows: int) -> bool:
    """Returns whether a queue holds Q rows that were pushed; never for a queue of no rows.

    Args:
        queue: the queue.
        pushes: number of calls of `push` so far.
        rows: rows of a rank in every call.
    """
    return 0 < queue.shape[-2] <= pushes * rows * world_size()
