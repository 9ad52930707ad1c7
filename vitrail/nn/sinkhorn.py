"""Sinkhorn-Knopp codes: softmax over prototypes, balanced to use all prototypes equally.

Cuturi 2013, Algorithm 1; Caron et al. 2020 (SwAV), section 3.1, eqs. (3)-(5).
Reference: facebookresearch/swav at 06b1b7c (main_swav.py: distributed_sinkhorn).

    Q = Diag(b) · exp(S / ε) · Diag(a),   b = 1
    repeat:  a <- 1 / (bᵀ exp(S / ε))     every prototype gets the same share of the batch
             b <- 1 / (exp(S / ε) a)      every sample has a total of 1

Passes. The reference rescales the whole matrix twice in each iteration. Here the matrix is constant
and only a and b change: one pass for the columns' maxima, one that writes the matrix and finds the
first a, one that reads it for each further a, one that writes the codes. On a CPU the passes work
on tiles.

Accuracy. With S / ε of a few hundred exp overflows in float32, and with the overall maximum
subtracted the rows and columns far below it underflow. So exp(S / ε) is stored divided by a factor
for each column and row, with which both have an entry of at least 1/K: no sum can be 0 or infinite.
The columns' factors go into a, the rows' into the first b, and the codes are the same.

Ranks. The batch is the global one: the columns' maxima and sums are over all ranks, and codes do
not depend on how the batch was split. Ranks may have different numbers of rows.

Departures from the reference: none in the mathematics.

Shape legend: B rows of this rank · K prototypes · T rows of a tile.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.distributed.collectives import all_gather, sum_over_ranks

TILE = 2**20  # entries: 4 MiB of float32


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "B K"], epsilon: float, iterations: int = 3
) -> Float[Tensor, "B K"]:
    """Returns codes of samples over prototypes: non-negative, rows sum to 1, without gradient.

    Over the rows of all ranks, each column sums to nearly (rows / K): exactly before the last step,
    which makes the rows sum to 1.

    Args:
        scores: of any float dtype, at least one row on every rank. Any finite values.
        epsilon: ε, the scores' temperature: the smaller, the closer the codes are to one-hot.
        iterations: at least 1.

    Returns:
        float32, or float64 for float64 scores. NaN where scores are not finite: the caller's check
        of the loss then stops the run.

    Raises:
        ValueError: epsilon or iterations out of range.
    """
    if not epsilon > 0:
        raise ValueError(f"sinkhorn: epsilon is {epsilon}; it must be above 0 (0.05 is usual)")
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations is {iterations}; it must be 1 or more")
    with torch.autocast(scores.device.type, enabled=False):
        scores_BK = scores.to(torch.promote_types(scores.dtype, torch.float32))
        kernel_BK, a_K = _first_half(scores_BK, epsilon)
        tiles = _tiles(kernel_BK)
        for _ in range(iterations - 1):
            sums = [(1 / (tile_TK @ a_K)) @ tile_TK for tile_TK in tiles]
            a_K = 1 / _total(sums)
        for tile_TK in tiles:
            tile_TK.mul_(a_K)
            tile_TK.div_(tile_TK.sum(1, keepdim=True))
        return kernel_BK


def _first_half(scores_BK: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns exp(scores / ε) up to a factor for each column and row, and the first a."""
    below_K = _highest(scores_BK) / -epsilon
    kernel_BK = torch.empty_like(scores_BK)
    sums = []
    for score_TK, kernel_TK in zip(_tiles(scores_BK), _tiles(kernel_BK), strict=True):
        log_TK = torch.add(below_K, score_TK, alpha=1 / epsilon)
        # softmax divides a row by a factor, the first b, which follows from the row's largest entry
        torch.softmax(log_TK, 1, out=kernel_TK)
        sums.append((log_TK.amax(1).exp() / kernel_TK.amax(1)) @ kernel_TK)
    return kernel_BK, 1 / _total(sums)


def _highest(scores_BK: Tensor) -> Tensor:
    """Returns each column's maximum over all ranks; two steps, as torch is slow for many rows."""
    eighth = len(scores_BK) // 8
    folded = scores_BK[: 8 * eighth].unflatten(0, (8, eighth)).amax(0)
    of_rank = torch.cat([folded, scores_BK[8 * eighth :]]).amax(0, keepdim=True)
    return all_gather(of_rank).amax(0)


def _tiles(matrix_BK: Tensor) -> tuple[Tensor, ...]:
    """Splits into consecutive rows; on a GPU, where launches cost more, one tile of all rows."""
    on_cpu = matrix_BK.device.type == "cpu"
    return matrix_BK.split(max(1, TILE // matrix_BK.shape[1]) if on_cpu else len(matrix_BK))


def _total(sums: list[Tensor]) -> Tensor:
    """Adds up over tiles and ranks."""
    return sum_over_ranks(torch.stack(sums).sum(0))
