"""The effective rank: how many dimensions a set of features uses, without labels.

Shape legend: B features · D dimensions.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(features_BD: Float[Tensor, "B D"]) -> float:
    """Returns exp of the entropy of the singular values (RankMe, Garrido et al. 2023, eq. 1).

    Between 1 (all on a line, or all equal) and min(B - 1, D). Departure: rows are normalised and
    centred first, because a common offset would hide the spread. Synchronises with the device.
    """
    unit = torch.nn.functional.normalize(features_BD.double(), dim=1)
    centred = unit - unit.mean(dim=0)
    sigma = torch.linalg.svdvals(centred.cpu())
    # below this, only rounding of float32 inputs is left after centring: all rows are equal
    if sigma.square().sum() < 1e-10 * len(unit):
        return 1.0
    p = sigma / sigma.sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))
