"""k-nearest-neighbour classification of frozen features: exact, with bounded memory.

Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4: each of the k neighbours with the highest
cosine similarity s votes for its class with weight exp(s / tau), tau = .07. The textbook's plain
majority is `tau=None`.

Shape legend: N bank rows · M queries · D features · Q queries of a chunk · P bank rows of a chunk ·
K neighbours.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray

K = 20
TAU = 0.07


def _checked(features: Array, name: str) -> Tensor:
    """Unit-length float32 rows; a zero row stays zero."""
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise ValueError(
            f"{name} features: {bad} of {len(features)} rows hold NaN or infinity; "
            "the encoder has diverged or its input is broken, so k-NN would mean nothing"
        )
    return F.normalize(torch.from_numpy(np.ascontiguousarray(features)), dim=1)


def _top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending; of equal ones the leftmost first."""
    values, columns = similarity.topk(k, dim=1)
    boundary = values[:, -1:]
    # topk picks any of the entries equal to the k-th; rows where it had a choice need a sort.
    choice = (similarity == boundary).sum(1) != (values == boundary).sum(1)
    if choice.any():
        ranked, order = similarity[choice].sort(dim=1, descending=True, stable=True)
        values[choice], columns[choice] = ranked[:, :k], order[:, :k]
    columns, order = columns.sort(dim=1)
    values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_value)


def neighbours(
    bank: Float32[Array, "N D"],
    queries: Float32[Array, "M _"],
    k: int = K,
    *,
    query_chunk: int = 512,
    bank_chunk: int = 8192,
    device: str = "cpu",
) -> tuple[Float32[Array, "M K"], Int64[Array, "M K"]]:
    """The k rows of the bank with the highest cosine similarity to each query.

    Exact, in float32. Equal similarities are ordered by bank index, lowest first.

    Beyond a normalised copy of the inputs and the outputs (N D + M D + 3 M K numbers), memory is at
    most about 24 * query_chunk * (bank_chunk + k) bytes plus bank_chunk * D floats on `device`,
    whatever N and M are (100 MB with the defaults): the M x N similarities never exist.

    Args:
        k: clipped to the size of the bank, with a warning.

    Returns:
        similarities in [-1, 1], descending, and bank indices.

    Raises:
        ValueError: an empty bank, k < 1, differing widths, or features that are not finite.
    """
    if k < 1:
        raise ValueError(f"k = {k}: k-NN needs at least one neighbour")
    if len(bank) == 0:
        raise ValueError("the k-NN bank is empty: there are no training features to compare with")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank features have {bank.shape[1]} dimensions and queries {queries.shape[1]}: "
            "both must come from the same encoder"
        )
    if k > len(bank):
        warnings.warn(f"k = {k} is clipped to the {len(bank)} samples of the bank", stacklevel=2)
        k = len(bank)
    bank_ND, queries_MD = _checked(bank, "bank"), _checked(queries, "query")
    similarity_MK = torch.empty(len(queries_MD), k)
    index_MK = torch.empty(len(queries_MD), k, dtype=torch.int64)
    for start in range(0, len(queries_MD), query_chunk):
        rows = slice(start, start + query_chunk)
        best = _search(bank_ND, queries_MD[rows].to(device), k, bank_chunk)
        similarity_MK[rows], index_MK[rows] = best
    return similarity_MK.numpy(), index_MK.numpy()


def _search(bank_ND: Tensor, queries_QD: Tensor, k: int, bank_chunk: int) -> tuple[Tensor, Tensor]:
    """A running top k of one chunk of queries over the chunks of the bank."""
    best_QK = queries_QD.new_empty(len(queries_QD), 0)
    index_QK = best_QK.to(torch.int64)
    for start in range(0, len(bank_ND), bank_chunk):
        bank_PD = bank_ND[start : start + bank_chunk].to(queries_QD.device)
        similarity_QP = queries_QD @ bank_PD.T
        values, columns = _top_k(similarity_QP, min(k, len(bank_PD)))
        # The running best comes first and has the lower indices: leftmost is still lowest.
        values = torch.cat([best_QK, values], dim=1)
        columns = torch.cat([index_QK, columns + start], dim=1)
        best_QK, kept = _top_k(values, min(k, values.shape[1]))
        index_QK = columns.gather(1, kept)
    return best_QK, index_QK


def vote(
    similarity: Float32[Array, "M K"],
    neighbour_labels: Int64[Array, "M K"],
    n_classes: int,
    tau: float | None = TAU,
) -> Int64[Array, " M"]:
    """The class with the most votes; of equal ones the lowest.

    Args:
        tau: temperature of the weights exp(similarity / tau); None for plain majority.
    """
    if tau is not None and tau <= 0:
        raise ValueError(f"tau = {tau}: the temperature must be above 0 (or None for majority)")
    weights = np.ones(similarity.shape)
    if tau is not None:
        # Relative to the nearest neighbour: a common factor changes no vote and cannot overflow.
        weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / tau)
    predicted = np.empty(len(similarity), dtype=np.int64)
    for start in range(0, len(similarity), 1024):
        rows = slice(start, start + 1024)
        votes = np.zeros((len(weights[rows]), n_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], neighbour_labels[rows]), weights[rows])
        predicted[rows] = votes.argmax(axis=1)
    return predicted


def check_labels(labels: Int64[Array, " N"], what: str) -> None:
    """Raises ValueError unless every row has a class."""
    if len(labels) == 0:
        raise ValueError(f"the {what} set is empty: there is nothing to evaluate")
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} {what} samples have no label, and this protocol needs "
            "labels; evaluate on labelled data, or ask for pictures only (saliency, pca)"
        )


def knn_predict(
    bank: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    queries: Float32[Array, "M _"],
    k: int = K,
    tau: float | None = TAU,
    device: str = "cpu",
) -> Int64[Array, " M"]:
    """Classes of the queries by the votes of their k nearest neighbours in the bank.

    A bank of a single class predicts that class. Raises ValueError as `neighbours` and `vote`, and
    for an unlabelled bank.
    """
    check_labels(labels, "train")
    similarity, index = neighbours(bank, queries, k, device=device)
    return vote(similarity, labels[index], int(labels.max()) + 1, tau)


def knn_accuracy(
    bank: Float32[Array, "N D"],
    labels: Int64[Array, " N"],
    queries: Float32[Array, "M _"],
    query_labels: Int64[Array, " M"],
    k: int = K,
    tau: float | None = TAU,
    device: str = "cpu",
) -> float:
    """The fraction of queries whose class `knn_predict` gets right, in [0, 1].

    A query of a class that the bank does not have counts as wrong.
    """
    check_labels(query_labels, "test")
    return float((knn_predict(bank, labels, queries, k, tau, device) == query_labels).mean())
