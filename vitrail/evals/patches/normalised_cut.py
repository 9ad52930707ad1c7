"""The normalised cut of a thresholded graph: its second-smallest generalised eigenvector, fast.

Source: Shi & Malik 2000, equations 5 to 7: the x of (D − W) x = λ D x with the second-smallest λ.
With u = D^½ x that is the leading eigenvector of D^-½ W D^-½ beside D^½ 1, whose λ is 0. Found by a
block Lanczos iteration (Golub & Underwood 1977) with full orthogonalisation. In float64: in a graph
of separate parts the first eigenvalues lie about 1e-5 apart, and float32 mixes their vectors.

Shape legend: n nodes · b vectors of a block · m vectors found so far.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vitrail.nn.random import philox

WEAK = 1e-5  # the weight between nodes that are not connected
BLOCK = 4  # vectors a pass: the matrix is read once for all of them
MAX_PASSES = 60
TOLERANCE = 1e-5  # the error of the vector, of unit norm: residual / gap (Davis & Kahan 1970)
FLOOR = 1e-13  # the least residual that rounding leaves
SMALL = 400  # nodes up to which a dense solver is as fast


@dataclass(frozen=True)
class Eigenvector:
    """vector: x, with xᵀ D x = 1 and its largest entry (the first, of equal ones) positive;
    value: its λ in [0, 2]; passes: over the matrix, 0 where a dense solver found it."""

    vector: Float64[Tensor, " n"]
    value: float
    passes: int


def second_eigenvector(
    connected: Bool[Tensor, "n n"], weak: float = WEAK, max_passes: int = MAX_PASSES
) -> Eigenvector:
    """The x of the second-smallest λ of (D − W) x = λ D x, W = 1 where connected, else `weak`.

    Runs on the device of `connected` (which must have float64: CPU or CUDA), from a fixed start, so
    that the same graph gives the same vector. Small graphs, and those on which the iteration has
    not converged after `max_passes`, go to `dense_eigenvector`. Memory: 8 n² bytes.

    Args:
        connected: symmetric; n >= 2. weak: in (0, 1).
    """
    n = len(connected)
    if n > max(SMALL, (max_passes + 1) * BLOCK):
        found = _lanczos(connected, weak, max_passes)
        if found is not None:
            return found
    return dense_eigenvector(connected, weak)


def dense_eigenvector(connected: Bool[Tensor, "n n"], weak: float = WEAK) -> Eigenvector:
    """The same by `scipy.linalg.eigh`, on the CPU: the check of the above, and its last resort."""
    weight_nn = np.where(connected.cpu().numpy(), 1.0, weak)
    degree_nn = np.diag(weight_nn.sum(1))
    values, vectors = scipy.linalg.eigh(
        degree_nn - weight_nn, degree_nn, subset_by_index=[1, 1], overwrite_a=True
    )
    vector = torch.from_numpy(vectors[:, 0].copy()).to(connected.device)
    return Eigenvector(_signed(vector), float(values[0]), 0)


def peak(vector: Float64[Tensor, " n"]) -> int:
    """Where the entry of largest magnitude is; of those equal to 1e-6, the first."""
    magnitude = vector.abs()
    return int((magnitude >= magnitude.max() * (1 - 1e-6)).nonzero()[0])


def _signed(vector: Tensor) -> Tensor:
    return -vector if vector[peak(vector)] < 0 else vector


def _lanczos(connected: Tensor, weak: float, max_passes: int) -> Eigenvector | None:
    """None if it has not converged."""
    n, device = len(connected), connected.device
    linked_nn = connected.double()
    degree_n = weak * n + (1 - weak) * linked_nn.sum(1)
    scale_n1 = degree_n.rsqrt()[:, None]
    # The trivial eigenvector stands first in the basis, so that the others are orthogonal to it.
    basis_nm = torch.zeros(n, 1 + BLOCK * max_passes, dtype=torch.float64, device=device)
    basis_nm[:, 0] = degree_n.sqrt() / degree_n.sum().sqrt()
    images_nm = torch.zeros_like(basis_nm)
    start = philox(0, "normalised cut", 0).standard_normal((n, BLOCK))
    block_nb = torch.from_numpy(start).to(device)
    for done in range(max_passes):
        old, new = 1 + BLOCK * done, 1 + BLOCK * (done + 1)
        basis_nm[:, old:new] = _orthonormal(block_nb, basis_nm[:, :old])
        scaled_nb = scale_n1 * basis_nm[:, old:new]
        # W = weak + (1 − weak) · connected, so that the tiny weight is not rounded away.
        product_nb = weak * scaled_nb.sum(0) + (1 - weak) * (linked_nn @ scaled_nb)
        block_nb = images_nm[:, old:new] = scale_n1 * product_nb
        vector, value, converged = _ritz(basis_nm[:, 1:new], images_nm[:, 1:new])
        if converged:
            return Eigenvector(_signed(scale_n1[:, 0] * vector), 1 - value, done + 1)
    return None


def _orthonormal(block_nb: Tensor, basis_nm: Tensor) -> Tensor:
    # Twice, since after the first time what is left may be rounding; then it is a new direction.
    for _ in range(2):
        block_nb = block_nb - basis_nm @ (basis_nm.T @ block_nb)
        block_nb = torch.linalg.qr(block_nb).Q
    return block_nb


def _ritz(basis_nm: Tensor, images_nm: Tensor) -> tuple[Tensor, float, bool]:
    """The leading eigenvector within the basis, its eigenvalue, and whether it is close enough."""
    small_mm = basis_nm.T @ images_nm
    # On the CPU, also where the basis is not: it is small, and it is waited for anyway.
    values, vectors = torch.linalg.eigh((small_mm + small_mm.T).cpu() / 2)
    leading = vectors[:, -1].to(basis_nm.device)
    vector = basis_nm @ leading
    residual = (images_nm @ leading - values[-1] * vector).norm().item()
    gap = (values[-1] - values[-2]).item()
    return vector, values[-1].item(), residual <= max(TOLERANCE * gap, FLOOR)
