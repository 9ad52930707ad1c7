"""Stochastic depth (Huang et al. 2016), per sample, from counter-based draws.

Shape legend: R rows (view-major, of all packed resolutions) · L layers · 2 branches of a layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.nn.random import Draws


def branch_scales(
    draws: Draws, rows: int, drop_path: float, depth: int
) -> Float[Tensor, "R L branches"]:
    """What to multiply each residual branch with: 0 where dropped, 1/(1 − rate) where kept.

    The rate grows linearly from 0 in the first layer to `drop_path` in the last (timm, DINO). All
    resolutions share one table of draws, so that no two views of a step have the same numbers.

    Args:
        rows: of all packed batches together, a multiple of the slice's sample count.

    Returns:
        float32 on the CPU; branch 0 is the attention's, branch 1 the token-wise operator's.
    """
    assert rows % draws.count == 0, (rows, draws.count)
    uniform_RL2 = draws.uniform("drop_path", depth, 2, views=rows // draws.count)
    rate_L1 = torch.linspace(0, drop_path, depth).unsqueeze(1)
    return (uniform_RL2 >= rate_L1) / (1 - rate_L1)
