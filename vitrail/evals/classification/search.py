"""Exact nearest neighbours by cosine similarity, with bounded memory.

Shape legend: N bank rows · M queries · D features · Q queries of a chunk · P bank rows of a chunk ·
G groups of a chunk · K neighbours.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.views.apply import full_precision

Array = np.ndarray

K = 20
GROUP = 32  # columns of a group, which is first compared by its maximum alone
QUERY_BLOCK = 65536  # queries on the device at a time; the bank is read once per block


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
