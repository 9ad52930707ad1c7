"""How many dimensions a set of features really uses, without labels.

Shape legend: B features · D dimensions.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(features_BD: Float[Tensor, "B D"]) -> float:
    """exp of the entropy of the singular value distribution (RankMe, Garrido et al. 2023, eq. 1).

    Between 1 (all on a line, or all equal) and min(B - 1, D). Departure: rows are normalised and
    centred first, so that a common offset does not hide the spread of the rest. A host sync.
    """
    unit = torch.nn.functional.normalize(features_BD.double(), dim=1)
    centred = unit - unit.mean(dim=0)
    sigma = torch.linalg.svdvals(centred.cpu())
    # Under this, what is left after centring is the rounding of float32 inputs: all rows are equal.
    if sigma.square().sum() < 1e-10 * len(unit):
        return 1.0
    p = sigma / sigma.sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))
