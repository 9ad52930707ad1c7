"""The normalised cut of a thresholded graph, by a fast solver for its second eigenvector.

Source: Shi & Malik 2000, equations 5 to 7: the x of (D − W) x = λ D x with the second-smallest λ.
With u = D^½ x this is the leading eigenvector of D^-½ W D^-½ orthogonal to D^½ 1, whose λ is 0. It
is computed by a block Lanczos iteration (Golub & Underwood 1977) with full orthogonalisation, in
float64: in a graph of separate parts the first eigenvalues differ by about 1e-5, and float32 mixes
their vectors.

Shape legend: n nodes · b vectors of a block · m vectors found so far.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vitrail.nn.random import philox

WEAK = 1e-5  # weight between nodes that are not connected
BLOCK = 4  # vectors of a pass, which reads the matrix once for all of them
MAX_PASSES = 60
TOLERANCE = 1e-5  # error of the unit vector: residual / gap (Davis & Kahan 1970)
FLOOR = 1e-13  # residual below which rounding dominates
SMALL = 400  # nodes up to which a dense solver is as fast


@dataclass(frozen=True)
class Eigenvector:
    """A solution of the generalised eigenvalue problem.

    Attributes:
        vector: x with xᵀ D x = 1, float64 [n]; its entry of largest magnitude is positive.
        value: its λ, in [0, 2].
        passes: passes over the matrix; 0 for the dense solver.
    """

    vector: Float64[Tensor, " n"]
    value: float
    passes: int


def second_eigenvector(
    connected: Bool[Tensor, "n n"], weak: float = WEAK, max_passes: int = MAX_PASSES
) -> Eigenvector:
    """Computes the x of the second-smallest λ of (D − W) x = λ D x.

    W is 1 where connected, else `weak`. Runs on the device of `connected` (which must have float64:
    CPU or CUDA), from a fixed start, so the same graph gives the same vector. Small graphs, and
    those on which the iteration has not converged after `max_passes`, use `dense_eigenvector`.
    Memory: 8 n² bytes.

    Args:
        connected: symmetric adjacency of at least 2 nodes, bool [n, n].
        weak: weight between nodes that are not connected, in (0, 1).
        max_passes: largest number of passes over the matrix.
    """
    n = len(connected)
    if n > max(SMALL, (max_passes + 1) * BLOCK):
        found = _lanczos(connected, weak, max_passes)
        if found is not None:
            return found
    return dense_eigenvector(connected, weak)


def dense_eigenvector(connected: Bool[Tensor, "n n"], weak: float = WEAK) -> Eigenvector:
    """Computes the same by `scipy.linalg.eigh` on the CPU; fallback and reference in tests."""
    weight_nn = np.where(connected.cpu().numpy(), 1.0, weak)
    degree_nn = np.diag(weight_nn.sum(1))
    values, vectors = scipy.linalg.eigh(
        degree_nn - weight_nn, degree_nn, subset_by_index=[1, 1], overwrite_a=True
    )
    vector = torch.from_numpy(vectors[:, 0].copy()).to(connected.device)
    return Eigenvector(_signed(vector), float(values[0]), 0)


def peak(vector: Float64[Tensor, " n"]) -> int:
    """Returns the index of the entry of largest magnitude; of those equal to 1e-6, the first."""
    magnitude = vector.abs()
    return int((magnitude >= magnitude.max() * (1 - 1e-6)).nonzero()[0])


def _signed(vector: Tensor) -> Tensor:
    """Returns the vector with its entry of largest magnitude positive."""
    return -vector if vector[peak(vector)] < 0 else vector


def _lanczos(connected: Tensor, weak: float, max_passes: int) -> Eigenvector | None:
    """Runs the block Lanczos iteration; returns None if it does not converge."""
    n, device = len(connected), connected.device
    linked_nn = connected.double()
    degree_n = weak * n + (1 - weak) * linked_nn.sum(1)
    scale_n1 = degree_n.rsqrt()[:, None]
    # the trivial eigenvector is first in the basis, so the others are orthogonal to it
    basis_nm = torch.zeros(n, 1 + BLOCK * max_passes, dtype=torch.float64, device=device)
    basis_nm[:, 0] = degree_n.sqrt() / degree_n.sum().sqrt()
    images_nm = torch.zeros_like(basis_nm)
    start = philox(0, "normalised cut", 0).standard_normal((n, BLOCK))
    block_nb = torch.from_numpy(start).to(device)
    for done in range(max_passes):
        old, new = 1 + BLOCK * done, 1 + BLOCK * (done + 1)
        basis_nm[:, old:new] = _orthonormal(block_nb, basis_nm[:, :old])
        scaled_nb = scale_n1 * basis_nm[:, old:new]
        # W = weak + (1 − weak) · connected: in one matrix, rounding would lose the tiny weight
        product_nb = weak * scaled_nb.sum(0) + (1 - weak) * (linked_nn @ scaled_nb)
        block_nb = images_nm[:, old:new] = scale_n1 * product_nb
        vector, value, converged = _ritz(basis_nm[:, 1:new], images_nm[:, 1:new])
        if converged:
            return Eigenvector(_signed(scale_n1[:, 0] * vector), 1 - value, done + 1)
    return None


def _orthonormal(block_nb: Tensor, basis_nm: Tensor) -> Tensor:
    """Returns an orthonormal basis of the block's part orthogonal to `basis_nm`."""
    # twice: the remainder of the first pass may be rounding error alone, not orthogonal
    for _ in range(2):
        block_nb = block_nb - basis_nm @ (basis_nm.T @ block_nb)
        block_nb = torch.linalg.qr(block_nb).Q
    return block_nb


def _ritz(basis_nm: Tensor, images_nm: Tensor) -> tuple[Tensor, float, bool]:
    """Returns the leading Ritz vector of the basis, its value, and true if it has converged."""
    small_mm = basis_nm.T @ images_nm
    # on the CPU: the matrix is small, and the result is needed there anyway
    values, vectors = torch.linalg.eigh((small_mm + small_mm.T).cpu() / 2)
    leading = vectors[:, -1].to(basis_nm.device)
    vector = basis_nm @ leading
    residual = (images_nm @ leading - values[-1] * vector).norm().item()
    gap = (values[-1] - values[-2]).item()
    return vector, values[-1].item(), residual <= max(TOLERANCE * gap, FLOOR)
