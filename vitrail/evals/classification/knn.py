"""k-nearest-neighbour classification of frozen features: exact, with bounded memory.

Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4: each of the k neighbours with the highest
cosine similarity s votes for its class with weight exp(s / tau), tau = 0.07. `tau=None` is a plain
majority vote.

Shape legend: N bank rows · M queries · D features · Q queries of a chunk · P bank rows of a chunk ·
G groups of a chunk · B queries of a block · K neighbours.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.apply import full_precision
from vitrail.evals.classification.scores import score
from vitrail.evals.contract import Context

Array = np.ndarray

K = 20
TAU = 0.07
GROUP = 32  # columns of a group, which is first compared by its maximum alone
QUERY_BLOCK = 65536  # queries on the device at a time; the bank is read once per block


@dataclass(frozen=True)
class Knn:
    """The settings of k-nearest-neighbour classification.

    Attributes:
        k: neighbours that vote, at least 1.
        more_k: other numbers of neighbours to measure too.
        tau: temperature of the votes' weights exp(cosine / tau), above 0.
    """

    k: int = K
    more_k: tuple[int, ...] = ()
    tau: float = TAU

    def __post_init__(self) -> None:
        if low := [k for k in (self.k, *self.more_k) if k < 1]:
            raise ValueError(f"k = {low[0]}: k-NN needs at least one neighbour")
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau}: it must be above 0")


def knn(context: Context, config: Knn) -> dict[str, Any]:
    """Measures accuracies by kind, votes weighted; "by_k" holds them for each k of several."""
    return _by_k(context, config, config.tau)


def knn_majority(context: Context, config: Knn) -> dict[str, Any]:
    """Measures the same with one vote each."""
    return _by_k(context, config, None)


def _by_k(context: Context, config: Knn, tau: float | None) -> dict[str, Any]:
    found = {
        k: {
            kind: score(votes(context, kind, config, k, tau), context.test.labels, context.metric)
            for kind in context.train.features
        }
        for k in (config.k, *config.more_k)
    }
    first: dict[str, Any] = found[config.k]
    if len(found) == 1:
        return first
    return first | {"by_k": {str(k): found[k] for k in sorted(found)}}


def votes(
    context: Context, kind: str, config: Knn, k: int, tau: float | None
) -> Int64[np.ndarray, " M"]:
    """Returns the classes that k neighbours give the test images, by features of a kind."""
    similarity, labels = nearest(context, kind, max(config.k, *config.more_k, 0))
    return vote(similarity[:, :k], labels[:, :k], int(context.train.labels.max()) + 1, tau)


def nearest(
    context: Context, kind: str, count: int
) -> tuple[Float32[np.ndarray, "M K"], Int64[np.ndarray, "M K"]]:
    """Returns similarities and labels of the `count` nearest train rows of every test row.

    They are found once for all protocols. Raises ValueError if labels are missing.
    """
    train, test = context.train, context.test
    check_labels(train.labels, "train")
    check_labels(test.labels, "test")
    key = ("nearest", kind, count)
    if key not in context.cache:
        similarity, index = neighbours(
            train.features[kind], test.features[kind], count, device=context.device
        )
        context.cache[key] = similarity, train.labels[index]
    found: tuple[np.ndarray, np.ndarray] = context.cache[key]
    return found


def _require_finite(features: Array, name: str) -> None:
    bad = sum(
        int((~np.isfinite(features[start : start + QUERY_BLOCK]).all(axis=1)).sum())
        for start in range(0, len(features), QUERY_BLOCK)
    )
    if bad:
        raise ValueError(
            f"{name} features: {bad} of {len(features)} rows hold NaN or infinity; "
            "the encoder has diverged or its input is broken, so k-NN would mean nothing"
        )


def _unit(features: Array, device: str) -> Tensor:
    """Returns the rows scaled to unit length, on the device; a zero row stays zero."""
    return F.normalize(torch.from_numpy(np.ascontiguousarray(features)).to(device), dim=1)


def _top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest values of each row, descending (ties leftmost first), and columns."""
    values, columns = similarity.topk(k, dim=1)
    boundary = values[:, -1:]
    # topk returns an arbitrary one of the entries equal to the k-th: rows with a tie need a sort
    choice = (similarity == boundary).sum(1) != (values == boundary).sum(1)
    if choice.any():
        ranked, order = similarity[choice].sort(dim=1, descending=True, stable=True)
        values[choice], columns[choice] = ranked[:, :k], order[:, :k]
    columns, order = columns.sort(dim=1)
    values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_value)


def _top_k_of_groups(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the same as `_top_k` in one pass over many columns, a multiple of GROUP.

    Groups of GROUP adjacent columns are ordered by their maxima. Each of the first k groups has an
    entry that precedes every entry of the groups after it, so the first k groups contain the first
    k entries.
    """
    groups_QGg = similarity.unflatten(1, (-1, GROUP))
    if groups_QGg.shape[1] <= k:
        return _top_k(similarity, min(k, similarity.shape[1]))
    chosen_QK = _top_k(groups_QGg.amax(2), k)[1].sort(dim=1).values
    members_QKg = groups_QGg.gather(1, chosen_QK[:, :, None].expand(-1, -1, GROUP))
    values, at = _top_k(members_QKg.flatten(1), k)
    return values, chosen_QK.gather(1, at // GROUP) * GROUP + at % GROUP


def neighbours(
    bank: Float32[Array, "N D"],
    queries: Float32[Array, "M _"],
    k: int = K,
    *,
    query_chunk: int = 1024,
    bank_chunk: int = 16384,
    device: str = "cpu",
) -> tuple[Float32[Array, "M K"], Int64[Array, "M K"]]:
    """Finds the k rows of the bank with the highest cosine similarity to each query.

    Exact, in float32. Equal similarities are ordered by bank index, lowest first.

    Beyond inputs and outputs, memory on `device` is at most about
    query_chunk * (5 bank_chunk + 1000 k) bytes for the similarities of one chunk to another,
    8 D bank_chunk bytes for the chunk of the bank, and 65,536 * (8 D + 12 k) bytes for the queries:
    350 MB with the defaults and D = 384, independent of N and M. Neither the M x N similarities nor
    a copy of the bank are allocated. On the CPU one more chunk of the bank is needed.

    Args:
        bank: features to search, float32 [N, D].
        queries: features to find neighbours of, float32 [M, D].
        k: number of neighbours; clipped to the size of the bank, with a warning.
        query_chunk: queries compared at a time.
        bank_chunk: bank rows compared at a time.
        device: torch device of the computation.

    Returns:
        similarities in [-1, 1], descending, and bank indices, both [M, k].

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
    _require_finite(bank, "bank")
    _require_finite(queries, "query")
    if k > len(bank):
        warnings.warn(f"k = {k} is clipped to the {len(bank)} samples of the bank", stacklevel=2)
        k = len(bank)
    similarity_MK = np.empty((len(queries), k), dtype=np.float32)
    index_MK = np.empty((len(queries), k), dtype=np.int64)
    with torch.inference_mode(), full_precision(torch.device(device)):
        for start in range(0, len(queries), QUERY_BLOCK):
            rows = slice(start, start + QUERY_BLOCK)
            best, index = _search(bank, _unit(queries[rows], device), k, query_chunk, bank_chunk)
            similarity_MK[rows], index_MK[rows] = best.cpu().numpy(), index.cpu().numpy()
    return similarity_MK, index_MK


def _search(
    bank: Array, queries: Tensor, k: int, query_chunk: int, bank_chunk: int
) -> tuple[Tensor, Tensor]:
    """Returns the top k of a block of queries, updated chunk by chunk over the bank.

    Each chunk of the bank is copied to the device once.
    """
    best_BK = queries.new_full((len(queries), k), -torch.inf)
    index_BK = torch.zeros_like(best_BK, dtype=torch.int64)
    width = -(-min(bank_chunk, len(bank)) // GROUP) * GROUP
    # reused for every chunk, to allocate once
    buffer = queries.new_empty(min(query_chunk, len(queries)), width)
    for start in range(0, len(bank), bank_chunk):
        bank_PD = _unit(bank[start : start + bank_chunk], str(queries.device))
        for first in range(0, len(queries), query_chunk):
            rows = slice(first, first + query_chunk)
            similarity_QP = _similarities(queries[rows], bank_PD, buffer)
            values, columns = _top_k_of_groups(similarity_QP, k)
            # earlier chunks have the lower indices and stand left: leftmost is still lowest
            values = torch.cat([best_BK[rows], values], dim=1)
            columns = torch.cat([index_BK[rows], columns + start], dim=1)
            best_BK[rows], selected = _top_k(values, k)
            index_BK[rows] = columns.gather(1, selected)
    return best_BK, index_BK


def _similarities(queries_QD: Tensor, bank_PD: Tensor, buffer: Tensor) -> Tensor:
    """Returns the products of two chunks, padded with -infinity to a whole number of groups."""
    n_rows, n_columns = len(queries_QD), len(bank_PD)
    similarity_QP = buffer[:n_rows, : -(-n_columns // GROUP) * GROUP]
    torch.mm(queries_QD, bank_PD.T, out=similarity_QP[:, :n_columns])
    similarity_QP[:, n_columns:] = -torch.inf
    return similarity_QP


def vote(
    similarity: Float32[Array, "M K"],
    neighbour_labels: Int64[Array, "M K"],
    n_classes: int,
    tau: float | None = TAU,
) -> Int64[Array, " M"]:
    """Returns the class with the most votes for each query; the lowest one of a tie.

    Args:
        similarity: cosine similarities of the neighbours, descending, float32 [M, K].
        neighbour_labels: classes of the neighbours, int64 [M, K].
        n_classes: number of classes.
        tau: temperature of the weights exp(similarity / tau); None for plain majority.

    Raises:
        ValueError: a temperature of 0 or below.
    """
    if tau is not None and tau <= 0:
        raise ValueError(f"tau = {tau}: the temperature must be above 0 (or None for majority)")
    weights = np.ones(similarity.shape)
    if tau is not None:
        # relative to the nearest neighbour: a common factor changes no vote and avoids overflow
        weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / tau)
    predicted = np.empty(len(similarity), dtype=np.int64)
    for start in range(0, len(similarity), 1024):
        rows = slice(start, start + 1024)
        votes = np.zeros((len(weights[rows]), n_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], neighbour_labels[rows]), weights[rows])
        predicted[rows] = votes.argmax(axis=1)
    return predicted


def check_labels(labels: Int64[Array, " N"], what: str) -> None:
    """Checks that every row has a class.

    Args:
        labels: classes, -1 for none, int64 [N].
        what: name of the split, for the message.

    Raises:
        ValueError: no rows, or rows without a label.
    """
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
    """Predicts the classes of the queries by the votes of their k nearest neighbours in the bank.

    A bank of a single class predicts that class.

    Args:
        bank: features of the train samples, float32 [N, D].
        labels: classes of the bank's rows, int64 [N].
        queries: features of the samples to classify, float32 [M, D].
        k: number of neighbours.
        tau: temperature of the votes; None for plain majority.
        device: torch device of the search.

    Raises:
        ValueError: as `neighbours` and `vote`, and for an unlabelled bank.
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
    """Returns the fraction of queries that `knn_predict` classifies correctly, in [0, 1].

    A query of a class that is absent from the bank counts as wrong. Arguments and errors are those
    of `knn_predict`, with the classes of the queries, int64 [M].
    """
    check_labels(query_labels, "test")
    return float((knn_predict(bank, labels, queries, k, tau, device) == query_labels).mean())
