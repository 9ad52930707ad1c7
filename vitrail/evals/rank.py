"""How much of its space an encoder uses, without labels: RankMe beside the effective rank.

Shape legend: N features · D dimensions.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from vitrail.nn.effective_rank import effective_rank
from vitrail.nn.random import philox

Array = np.ndarray

RANK_ROWS = 2048  # of the test features
EPS = 1e-7


def rankme(features: Float32[Array, "N D"]) -> float:
    """exp of the entropy of the singular values (Garrido et al. 2023, arXiv:2210.02885, eq. 1).

    As published: of the features as they are, neither centred nor normalised. Between 1 and
    min(N, D), but for the paper's epsilon. Features that are all 0 have rank 1.
    """
    sigma = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if sigma.sum() == 0:
        return 1.0
    p = sigma / sigma.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def rank_numbers(features: dict[str, Array], seed: int) -> dict[str, Any]:
    """Both ranks of up to 2048 drawn rows, and the dimensions they are out of.

    Args:
        features: float32 [N, D] by kind; "trained" is one.

    Returns:
        dimensions, effective_rank (of centred unit vectors: see there) and rankme, and the two of
        the untrained encoder where it is among them.
    """
    order = philox(seed, "rank", 0).permutation(len(features["trained"]))
    numbers: dict[str, Any] = {"dimensions": features["trained"].shape[1]}
    for kind, suffix in (("trained", ""), ("untrained", "_untrained")):
        if kind in features:
            some = features[kind][order[:RANK_ROWS]]
            numbers[f"effective_rank{suffix}"] = round(effective_rank(torch.from_numpy(some)), 2)
            numbers[f"rankme{suffix}"] = round(rankme(some), 2)
    return numbers
