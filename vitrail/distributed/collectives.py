"""Sums, means and gathers over ranks, with gradients.

A loss with a global term is computed on every rank from the same reduced numbers. The backward of
a sum over ranks is the sum over ranks of the gradients: the input of rank r is part of the loss of
every rank. DDP then *averages* the parameter gradients over ranks: they become the gradient of
the mean of the ranks' losses:

    d/dθ (1/N) Σ_q loss_q(Σ_r x_r)  =  (1/N) Σ_r (Σ_q dloss_q/dsum) · dx_r/dθ
                                        ^DDP      ^backward of all_sum

which is the one-process gradient if the mean of the ranks' losses is the one-process loss. (With a
backward that passes only the local gradient, the result is N times too small.)

`all_*` have gradients, `*_over_ranks` do not. Without an initialised process group there is one
rank, and all of them are the identity. All ranks must call in the same order with equal shapes.

Shape legend: N ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def world_size() -> int:
    """Returns N, the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns the sum of `x` over ranks, bit-identical on all of them. A new tensor if N > 1."""
    return x if world_size() == 1 else _AllSum.apply(x)


def all_mean(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns the mean of `x` over ranks."""
    return x if world_size() == 1 else _AllSum.apply(x) / world_size()


def all_gather(x: Shaped[Tensor, "rows *shape"]) -> Shaped[Tensor, "all_rows *shape"]:
    """Returns the rows of all ranks, in rank order. Every rank has the same number of rows."""
    return x if world_size() == 1 else _AllGather.apply(x)


@torch.no_grad()
def sum_over_ranks(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns `all_sum` without a gradient: for counts, centres and logged values."""
    return all_sum(x.detach())


@torch.no_grad()
def mean_over_ranks(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns `all_mean` without a gradient."""
    return all_mean(x.detach())


@torch.no_grad()
def of_first_rank(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns rank 0's `x` on every rank. The others' `x` must have its shape and dtype.

    A new tensor if N > 1.
    """
    if world_size() == 1:
        return x
    same = x.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(same, src=0)
    return same


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllSum.apply(grad)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        mine = x.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(world_size())]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # all rows are summed and this rank's taken: Gloo has no reduce-scatter
        return _AllSum.apply(grad).narrow(0, rank() * ctx.rows, ctx.rows)
