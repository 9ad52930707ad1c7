"""Clusters of features: PCA-whitening, then Lloyd's k-means on any device.

As DeepCluster clusters its features (Caron et al. 2018, section 3.3 and "Implementation details";
facebookresearch/deepcluster at 2d1927e, clustering.py, on faiss).

Shape legend: N samples · D features · P whitened ones · K clusters · n rows of a chunk.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.nn.heads import unit_norm

ITERATIONS = 20  # faiss, as published
# Scores computed at a time; changes only speed. On a CPU they should stay in a core's cache.
CPU_SCORES, CUDA_SCORES = 2**19, 2**28
ROWS = 2**14  # of features in float64 at a time
# Directions with less than this share of the largest variance are rounding of float32 features.
NO_VARIANCE = 1e-6
# A split cluster's two centroids are its centroid times 1 ± this: faiss's EPS.
SPLIT = 1 / 1024


class Clusters(NamedTuple):
    """The result of k-means.

    Attributes:
        labels: number of the nearest centroid of each sample, int64 [N].
        centroids: float32 [K, P].
    """

    labels: Int[Tensor, " N"]
    centroids: Float[Tensor, "K P"]


def whiten(features: Float[Tensor, "N D"], dim: int, device: torch.device) -> Float[Tensor, "N P"]:
    """Returns the first min(dim, D) principal components, whitened, then rows of unit norm.

    Components without variance (a norm's output has one, fewer than D samples have many) are 0
    instead of magnified rounding; so is a row that is the mean. Float64 inside.

    Args:
        features: finite, on any device.
        dim: number of components.
        device: where to compute; the result, float32, is there.
    """
    n = len(features)
    chunks = features.split(ROWS)
    mean_D = _total(chunk.to(device).double().sum(0) for chunk in chunks) / n
    second_DD = _total(_gram(chunk.to(device).double() - mean_D) for chunk in chunks) / n
    variance_D, basis_DD = torch.linalg.eigh(second_DD)  # in rising order
    variance_P = variance_D.flip(0)[:dim]
    scale_P = variance_P.clamp(min=1e-300).rsqrt()
    scale_P = torch.where(variance_P > NO_VARIANCE * variance_P[0], scale_P, 0.0)
    map_DP = basis_DD.flip(1)[:, :dim] * scale_P
    parts = [((chunk.to(device).double() - mean_D) @ map_DP).float() for chunk in chunks]
    return unit_norm(torch.cat(parts))


def kmeans(
    x: Float[Tensor, "N P"], k: int, random: np.random.Generator, iterations: int = ITERATIONS
) -> Clusters:
    """Runs Lloyd's algorithm from k samples chosen at random, as in faiss.

    An empty cluster gets a centroid beside that of another, which is chosen with a probability in
    proportion to its number of samples less one; the two split its samples from the next iteration
    on. Clusters may still be empty after the last iteration.

    Args:
        x: float32, at least k rows.
        k: number of clusters, K.
        random: the only source of randomness.
        iterations: number of iterations.

    Raises:
        ValueError: fewer samples than clusters.
    """
    if not 1 <= k <= len(x):
        raise ValueError(
            f"k-means: {k} clusters of {len(x)} samples; use 1 to {len(x)} clusters, or more data"
        )
    centroids_KP = x[torch.from_numpy(random.permutation(len(x))[:k]).to(x.device)]
    for _ in range(iterations):
        labels_N, _ = nearest(x, centroids_KP)
        size_K = torch.bincount(labels_N, minlength=k)
        sums_KP = torch.zeros_like(centroids_KP).index_add_(0, labels_N, x)
        centroids_KP = split_empty(sums_KP / size_K.clamp(min=1)[:, None], size_K, random)
    return Clusters(nearest(x, centroids_KP)[0], centroids_KP)


def nearest(
    x: Float[Tensor, "N P"], centroids: Float[Tensor, "K P"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Returns the number of each row's nearest centroid, and the squared distance to it."""
    half_K = centroids.square().sum(1) / 2
    held = CUDA_SCORES if x.is_cuda else CPU_SCORES
    rows = max(1, held // len(centroids))
    # x·c - |c|²/2 is largest where |x - c|² is least.
    found = [
        torch.addmm(half_K, chunk_nP, centroids.T, beta=-1).max(1) for chunk_nP in x.split(rows)
    ]
    score_N = torch.cat([part.values for part in found])
    labels_N = torch.cat([part.indices for part in found])
    return labels_N, (x.square().sum(1) - 2 * score_N).clamp(min=0)


def split_empty(
    centroids: Float[Tensor, "K P"], sizes: Int[Tensor, " K"], random: np.random.Generator
) -> Float[Tensor, "K P"]:
    """Moves the centroids of empty clusters beside those of others, as faiss's `split_clusters`.

    The two become the other's centroid times 1 ± SPLIT, the sign alternating over coordinates. The
    other's number of samples is then counted as halved.

    Args:
        centroids: of all clusters.
        sizes: number of samples of each cluster.
        random: the only source of randomness.
    """
    size_K = sizes.cpu().numpy().astype(np.float64)
    empty = np.flatnonzero(size_K == 0)
    if not len(empty):
        return centroids
    centroids = centroids.clone()
    sign_P = torch.ones(centroids.shape[1], device=centroids.device, dtype=centroids.dtype)
    sign_P[1::2] = -1
    for cluster in empty:
        weight_K = np.maximum(size_K - 1, 0)
        if weight_K.sum() == 0:
            break  # as many samples as clusters, or fewer
        full = random.choice(len(size_K), p=weight_K / weight_K.sum())
        centroids[cluster] = centroids[full] * (1 + SPLIT * sign_P)
        centroids[full] *= 1 - SPLIT * sign_P
        size_K[cluster] = size_K[full] // 2
        size_K[full] -= size_K[cluster]
    return centroids


def _gram(x_ND: Tensor) -> Tensor:
    return x_ND.T @ x_ND


def _total(parts: Iterator[Tensor]) -> Tensor:
    """Adds up the parts, without storing all of them."""
    return reduce(torch.add, parts)
