"""Ranks of the features, without labels: RankMe and the effective rank.

Shape legend: N features · D dimensions.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from vitrail.nn.effective_rank import effective_rank
from vitrail.nn.random import philox

Array = np.ndarray

RANK_ROWS = 2048  # rows of the test features used at most
EPS = 1e-7


def rankme(features: Float32[Array, "N D"]) -> float:
    """Returns RankMe: exp of the entropy of the features' normalised singular values.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equation 1. As published, the features are
    neither centred nor normalised. The range is 1 to min(N, D), up to the paper's epsilon. Features
    of zeros have rank 1.
    """
    sigma = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if sigma.sum() == 0:
        return 1.0
    p = sigma / sigma.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def rank_numbers(features: dict[str, Array], seed: int) -> dict[str, Any]:
    """Computes both ranks on up to 2048 randomly drawn rows.

    Args:
        features: float32 [N, D] for each kind; "trained" is one of them.
        seed: seed of the draw.

    Returns:
        "dimensions", "effective_rank" (of centred unit vectors, see `effective_rank`) and "rankme",
        and the two ranks with the suffix "_untrained" if that kind is given.
    """
    order = philox(seed, "rank", 0).permutation(len(features["trained"]))
    numbers: dict[str, Any] = {"dimensions": features["trained"].shape[1]}
    for kind, suffix in (("trained", ""), ("untrained", "_untrained")):
        if kind in features:
            rows = features[kind][order[:RANK_ROWS]]
            numbers[f"effective_rank{suffix}"] = round(effective_rank(torch.from_numpy(rows)), 2)
            numbers[f"rankme{suffix}"] = round(rankme(rows), 2)
    return numbers
