"""Stochastic depth (Huang et al. 2016), per sample, from counter-based draws.

Shape legend: R rows (view-major, of all packed resolutions) · L layers · 2 branches of a layer ·
T tokens of all rows · t tokens of the rows that keep a branch · B images of one resolution ·
N tokens of an image · D features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.nn.random import Draws

Shapes = list[tuple[int, int]]  # (B, N) of each resolution, in the order of the packed tokens
Branch = Callable[[Tensor, Shapes], Tensor]

# From this rate on, a branch is computed only for the samples that keep it. Below it, gather and
# scatter cost as much as they save (benchmarks/drop_path.py); DINOv2 uses the same 0.1.
SKIP_FROM = 0.1


@dataclass(frozen=True)
class Kept:
    """The samples that keep a branch.

    Attributes:
        tokens: places of their tokens in the packed matrix, int64 [t].
        shapes: (B, N) of each resolution, for these samples only.
        scale: factor of the branch, 1/(1 − rate).
    """

    tokens: Int[Tensor, "t"]
    shapes: Shapes
    scale: float


# Stochastic depth of a branch: none, a factor for every token [T, 1], or a choice of samples.
Drop = Tensor | Kept | None


def add_branch(
    tokens: Float[Tensor, "T D"], branch: Branch, shapes: Shapes, drop: Drop = None
) -> Float[Tensor, "T D"]:
    """Returns tokens + branch(tokens), with stochastic depth on the branch."""
    if isinstance(drop, Kept):
        branch_tD = branch(tokens[drop.tokens], drop.shapes) * drop.scale
        return tokens.index_add(0, drop.tokens, branch_tD.to(tokens.dtype))
    branch_TD = branch(tokens, shapes)
    return tokens + (branch_TD if drop is None else branch_TD * drop)


def plan_drops(
    draws: Draws | None,
    shapes: Shapes,
    drop_path: float,
    depth: int,
    like: Float[Tensor, "T D"],
    skip: bool = True,
) -> list[tuple[Drop, Drop]]:
    """Returns the stochastic depth of the two branches of each layer.

    Args:
        draws: randomness of this slice; None drops nothing.
        shapes: (B, N) of each resolution, in the order in which the tokens are packed.
        drop_path: rate in the last layer, in [0, 1).
        depth: number of layers, L.
        like: the tokens, for their device and dtype.
        skip: leave out the work for dropped samples from rate SKIP_FROM on. Shapes then depend on
            the draws, which a compiled layer does not allow.
    """
    if draws is None or drop_path == 0:
        return [(None, None)] * depth
    rows = sum(count for count, _ in shapes)
    scales_RL2 = branch_scales(draws, rows, drop_path, depth)
    repeats_R = torch.tensor([n for count, n in shapes for _ in range(count)])
    dense_TL2 = scales_RL2.repeat_interleave(repeats_R, dim=0)
    drops: list[list[Drop]] = [list(pair.split(1, dim=1)) for pair in dense_TL2.to(like).unbind(1)]
    if skip:
        for layer, rate in enumerate(_rates(drop_path, depth)):
            for branch in range(2):
                kept_R = scales_RL2[:, layer, branch] > 0
                # If no sample keeps it, the branch is computed and multiplied by 0: its parameters
                # need a gradient in every step, or ranks would disagree about which to exchange.
                if rate >= SKIP_FROM and kept_R.any():
                    tokens_t = dense_TL2[:, layer, branch].nonzero().squeeze(1)
                    scale = scales_RL2[:, layer, branch].max().item()
                    kept_shapes = _kept_shapes(kept_R, shapes)
                    drops[layer][branch] = Kept(tokens_t.to(like.device), kept_shapes, scale)
    return [(attention, tokenwise) for attention, tokenwise in drops]


def branch_scales(
    draws: Draws, rows: int, drop_path: float, depth: int
) -> Float[Tensor, "R L branches"]:
    """Returns the factor of each residual branch: 0 if dropped, else 1/(1 − rate).

    The rate grows linearly from 0 in the first layer to `drop_path` in the last (timm, DINO). All
    resolutions share one table of draws: no two views of a step have the same numbers.

    Args:
        draws: randomness of this slice.
        rows: number of images of all packed batches, R, a multiple of the slice's sample count.
        drop_path: rate in the last layer, in [0, 1).
        depth: number of layers, L.

    Returns:
        float32 on the CPU; branch 0 is the attention's, branch 1 the token-wise operator's.
    """
    assert rows % draws.count == 0, (rows, draws.count)
    uniform_RL2 = draws.uniform("drop_path", depth, 2, views=rows // draws.count)
    rate_L1 = torch.tensor(_rates(drop_path, depth)).unsqueeze(1)
    return (uniform_RL2 >= rate_L1) / (1 - rate_L1)


def _rates(drop_path: float, depth: int) -> list[float]:
    return torch.linspace(0, drop_path, depth).tolist()


def _kept_shapes(kept_R: Tensor, shapes: Shapes) -> Shapes:
    counts = [int(part.sum()) for part in kept_R.split([count for count, _ in shapes])]
    return [(count, n) for count, (_, n) in zip(counts, shapes, strict=True) if count]
