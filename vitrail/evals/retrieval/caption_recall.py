"""Images found by captions, captions found by images: recall among the first k.

Karpathy & Fei-Fei 2015, section 4.2, as used since (Radford et al. 2021, appendix E.1). A picture
that has several captions is found when one of them is, and counts once; so does a caption that
several pictures share.

Shape legend: N pairs · I pictures · C captions · Z dimensions of the joint space.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

Array = np.ndarray

KS = (1, 5, 10)
TIED = 1e-6  # cosines that differ by less are as near: float32 knows no better
CHUNK = 2**24  # similarities held at once, 64 MiB of float32


def retrieval(
    images: Float32[Array, "N Z"],
    texts: Float32[Array, "N Z"],
    pictures: Sequence[str],
    captions: Sequence[str],
    ks: Sequence[int] = KS,
) -> dict[str, dict[str, float]]:
    """Recall@k both ways. Row n is picture `pictures[n]` with caption `captions[n]`.

    Ties count against the model: one that gives every image the same vector finds nothing.

    Args:
        images, texts: vectors whose product is the similarity.
        ks: each at least 1; those above the number of candidates are always found.

    Returns:
        "image_to_text" and "text_to_image", each {"recall@k": fraction in [0, 1], "chance@k": that
        of a random order, "median_rank": from 1, "candidates": how many there are to choose from}.

    Raises:
        ValueError: no pairs.
    """
    if not len(images):
        raise ValueError("retrieval: there are no pairs of an image and a caption")
    require_finite("retrieval", images, texts)
    image_at, image_of = _numbered(pictures)
    text_at, text_of = _numbered(captions)
    pairs = np.unique(np.stack([image_of, text_of], axis=1), axis=0)
    images_IZ, texts_CZ = images[image_at], texts[text_at]
    return {
        "image_to_text": _recalls(images_IZ, texts_CZ, pairs, ks),
        "text_to_image": _recalls(texts_CZ, images_IZ, pairs[:, ::-1], ks),
    }


def require_finite(protocol: str, *vectors: Array) -> None:
    """Raises ValueError for vectors that hold NaN or infinity."""
    if not all(np.isfinite(part).all() for part in vectors):
        raise ValueError(
            f"{protocol}: some vectors of images or captions hold NaN or infinity; the encoder has "
            "diverged, so the numbers would mean nothing"
        )


def _numbered(names: Sequence[str]) -> tuple[Int64[Array, " different"], Int64[Array, " N"]]:
    """(where each different name comes first, the number of each row's name)."""
    number: dict[str, int] = {}
    rows = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
    return np.unique(rows, return_index=True)[1], rows


def _recalls(
    queries: Array, candidates: Array, pairs: Array, ks: Sequence[int]
) -> dict[str, float]:
    ranks = first_ranks(queries, candidates, pairs)
    right = np.bincount(pairs[:, 0], minlength=len(queries))
    found = {f"recall@{k}": float((ranks < k).mean()) for k in ks}
    chance = {f"chance@{k}": float(_chance(len(candidates), right, k).mean()) for k in ks}
    median = {"median_rank": float(np.median(ranks) + 1), "candidates": len(candidates)}
    return found | chance | median


def first_ranks(
    queries: Float32[Array, "Q Z"], candidates: Float32[Array, "C Z"], pairs: Int64[Array, "P 2"]
) -> Int64[Array, " Q"]:
    """How many wrong candidates come before the first right one, or are as near.

    Args:
        pairs: (query, candidate) that belong together; every query is in one at least.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    rows = max(1, CHUNK // len(candidates))
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ candidates.T
        first, last = np.searchsorted(pairs[:, 0], (start, start + len(similarity)))
        query, candidate = pairs[first:last, 0] - start, pairs[first:last, 1]
        right = similarity[query, candidate]
        best = np.full(len(similarity), -np.inf, dtype=similarity.dtype)
        np.maximum.at(best, query, right)
        level = best - TIED
        as_near = (similarity >= level[:, None]).sum(axis=1)
        own = np.bincount(query, weights=right >= level[query], minlength=len(similarity))
        ranks[start : start + rows] = as_near - own.astype(np.int64)
    return ranks


def _chance(candidates: int, right: Array, k: int) -> Array:
    """1 - (C - r choose k) / (C choose k): that k of C drawn without return hold one of r."""
    drawn = np.arange(min(k, candidates))[:, None]
    return 1 - ((candidates - right - drawn).clip(min=0) / (candidates - drawn)).prod(axis=0)
