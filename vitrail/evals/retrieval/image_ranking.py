"""Image retrieval by an image: the ranks of images of the query's class by similarity.

Mean average precision and recall@k as in metric learning: each image of a set is a query for the
other images of its class in that set (Musgrave et al. 2020, arXiv:2003.08505, section 2; recall@k
as of Jégou et al. 2011 and Oh Song et al. 2016). The whole ranking counts, not only its first
entries as in k-NN.

Shape legend: N images · D features · Q queries of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.apply import full_precision
from vitrail.evals.classification.knn import check_labels
from vitrail.evals.contract import Context

KS = (1, 5, 10)
CHUNK = 2**21  # similarities in memory at a time


@dataclass(frozen=True)
class Ranking:
    """Retrieval scores as means over the queries, in [0, 1].

    Attributes:
        mean_average_precision: mean of the queries' average precision.
        recall: recall@k for each k.
        alone: share of images that are no queries, as no other image has their class.
        chance: mean average precision of constant features.
    """

    mean_average_precision: float
    recall: dict[int, float]
    alone: float
    chance: float


def rank_classes(
    features: Float32[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    ks: Sequence[int] = KS,
    device: str = "cpu",
) -> Ranking:
    """Ranks, for each image as the query, all others by cosine similarity, and scores the ranking.

    Average precision is Σ (recall gained) × precision over the distinct similarities, so ties count
    together, as in scikit-learn. A query counts for recall@k if fewer than k images of other
    classes are at least as similar as the most similar one of its own: ties count against the
    features.

    Exact, in float32. Memory on the device: about 60 bytes for each of CHUNK similarities (130 MB),
    or of N if that is more. 10,000 images of 384 features: 14 s on one core of a shared machine.

    Args:
        features: features of the images, float32 [N, D].
        labels: classes of the images, int64 [N], each 0 or more.
        ks: values of k for recall@k.
        device: torch device of the computation.

    Raises:
        ValueError: images without labels, features that are not finite, or no two images of a
            class.
    """
    check_labels(labels, "test")
    if not np.isfinite(features).all():
        raise ValueError("mean average precision: features hold NaN or infinity")
    same = np.bincount(labels)[labels] - 1
    if not (same > 0).any():
        raise ValueError(
            f"mean average precision: none of the {len(labels)} images has another of its class "
            "beside it, and a class needs at least 2; name data with more images by --data"
        )
    unit_ND = F.normalize(torch.from_numpy(np.ascontiguousarray(features)).to(device), dim=1)
    labels_N = torch.from_numpy(labels).to(device)
    queries = torch.from_numpy(np.flatnonzero(same)).to(device)
    precisions, ranks = [], []
    with torch.inference_mode(), full_precision(torch.device(device)):
        for rows_Q in queries.split(max(1, CHUNK // len(labels))):
            similarity_QN = unit_ND[rows_Q] @ unit_ND.T
            # the query itself sorts last, and is cut off
            similarity_QN.scatter_(1, rows_Q[:, None], -torch.inf)
            values_QN, order_QN = similarity_QN.sort(dim=1, descending=True)
            right_QN = (labels_N[order_QN] == labels_N[rows_Q, None])[:, :-1]
            precisions.append(average_precision(values_QN[:, :-1], right_QN))
            ranks.append(_first_rank(values_QN[:, :-1], right_QN))
    rank_Q = torch.cat(ranks)
    return Ranking(
        mean_average_precision=float(torch.cat(precisions).mean()),
        recall={k: float((rank_Q < k).double().mean()) for k in ks},
        alone=float((same == 0).mean()),
        chance=float((same[same > 0] / (len(labels) - 1)).mean()),
    )


def average_precision(
    values: Float[Tensor, "Q N"], right: Bool[Tensor, "Q N"]
) -> Float[Tensor, " Q"]:
    """Returns the average precision of each ranking; equal values count together.

    Args:
        values: similarities of the candidates, descending, float [Q, N].
        right: correct candidates, bool [Q, N], at least one in each row.
    """
    places = torch.arange(1, values.shape[1] + 1, device=values.device)
    ends_QN = torch.ones_like(right)
    ends_QN[:, :-1] = values[:, 1:] != values[:, :-1]
    # place of the last candidate with the same value
    last_QN = torch.where(ends_QN, places, places[-1])
    last_QN = last_QN.flip(1).cummin(1).values.flip(1)
    found_QN = right.cumsum(1).gather(1, last_QN - 1)
    precision_QN = found_QN.double() / last_QN
    return (precision_QN * right).sum(1) / right.sum(1)


def _first_rank(values: Float[Tensor, "Q N"], right: Bool[Tensor, "Q N"]) -> Int64[Tensor, " Q"]:
    """Counts the wrong candidates before the first correct one, or with the same value."""
    nearest_Q1 = values.gather(1, right.int().argmax(1, keepdim=True))
    return ((values >= nearest_Q1) & ~right).sum(1)


def rank_test(context: Context) -> dict[str, Any]:
    """Runs the protocol; returns mean average precision by kind, and the other scores by name."""
    labels = context.test.labels
    found = {
        kind: rank_classes(features, labels, device=context.device)
        for kind, features in context.test.features.items()
    }
    numbers: dict[str, Any] = {kind: r.mean_average_precision for kind, r in found.items()}
    for k in KS:
        numbers[f"recall@{k}"] = {kind: ranking.recall[k] for kind, ranking in found.items()}
    any_one = next(iter(found.values()))
    return numbers | {"chance": any_one.chance, "alone": any_one.alone}


def ranking_table(numbers: dict[str, Any]) -> Table:
    """Returns the results as a table for the terminal, in percent."""
    kinds = list(numbers["recall@1"])
    chance = f"{100 * numbers['chance']:.1f}"
    title = f"test images of the same class, found by each other, % (chance: mAP {chance})"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for kind in kinds:
        table.add_column(kind, justify="right")
    rows = {"mAP": numbers} | {f"recall@{k}": numbers[f"recall@{k}"] for k in KS}
    for name, row in rows.items():
        table.add_row(name, *(f"{100 * row[kind]:.1f}" for kind in kinds))
    return table
