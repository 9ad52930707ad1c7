"""The Gaussian coding rate of a set of vectors (book ch. 4; (7.2.9), (7.2.34)).

    R_ε(Z) = ½ log det(I_d + d / (m ε²) · ZᵀZ),   Z: m × d

Accuracy. I + s·ZᵀZ has condition 1 + d/ε² when unit rows collapse onto one, 5·10³ to 10⁶, and the
gradient along the dominant direction is a small difference of large terms. A float32 Gram loses
1e-3 to 1e-1 of that gradient and up to 1e-2 of R (m, d in {256, 1024}, ε² = 0.0025; compare
`tests/nn/test_coding_rate.py`); a half-precision one is not even positive definite. So the products
and the Cholesky factor are float64: exact products of float32 features, no TF32, and autocast off.

Ranks. The rate is of the *global* set of vectors: it does not depend on how the batch was split.
If the global m >= d, the d × d second moments are summed over ranks; if m < d, the rows are
gathered (fewer numbers than d × d) and the m × m dual is used, since det(I_d + s ZᵀZ) =
det(I_m + s ZZᵀ). Both have gradients: see `collectives`.

In groups. `grouped_coding_rate` is of fixed groups of the global set, which ranks do not change
either.

Shape legend: V independent sets · M vectors a set on this rank · N ranks · m = N·M · D dimensions ·
G groups of n vectors.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.distributed.collectives import all_gather, all_sum, world_size


def coding_rate(z: Float[Tensor, "V M D"], eps: float) -> Float[Tensor, " V"]:
    """Returns R_ε of each set, over the vectors of all ranks, in nats.

    Args:
        z: vectors of any float dtype, the same number on every rank. They are not centred, as in
            the official code.
        eps: ε, the distortion; it is squared here. The official MCR², CRATE and SimDINO code passes
            its `eps` in the place of ε²: their 0.05 is `eps=0.05 ** 0.5` here.

    Returns:
        float32, the same on every rank. NaN if the factorisation failed, for features that are not
        finite or longer than about 1e6·ε: the caller's check of the loss then stops the run. (An
        exception here would synchronise with the device at every step.)

    Raises:
        ValueError: eps is not positive.
    """
    if not eps > 0:
        raise ValueError(f"The coding rate's eps is {eps}; it must be > 0 (0.05 ** 0.5 is usual).")
    with torch.autocast(z.device.type, enabled=False):
        return _half_logdet(*_small_gram(z.double(), eps)).float()


def grouped_coding_rate(z: Float[Tensor, "V M D"], eps: float, groups: int) -> Float[Tensor, " V"]:
    """Returns the mean over groups of a set's vectors of ½ log det(I_d + d / (m ε²) · Z_gᵀZ_g).

    The groups are equal runs of the global set of m vectors, so the result does not depend on the
    ranks. The factor is that of the whole set: this is the mean rate of the groups, each with the
    distortion ε · groups^½. SimDINO's published code computes it, with a group for each rank.

    Args:
        z: as in `coding_rate`.
        eps: ε, as in `coding_rate`.
        groups: their number, which divides m.

    Returns:
        float32, as `coding_rate`.

    Raises:
        ValueError: eps is not positive, or the groups are not equal.
    """
    m, d = world_size() * z.shape[-2], z.shape[-1]
    if not eps > 0:
        raise ValueError(f"The coding rate's eps is {eps}; it must be > 0 (0.05 ** 0.5 is usual).")
    if groups < 1 or m % groups:
        raise ValueError(
            f"The coding rate of {groups} groups of {m} vectors: groups must divide the global "
            "batch size; set either to fit"
        )
    with torch.autocast(z.device.type, enabled=False):
        rows_VmD = all_gather(z.double().transpose(0, 1)).transpose(0, 1)
        z_VGnD = rows_VmD.unflatten(1, (groups, -1))
        small = z_VGnD @ z_VGnD.mT if m // groups < d else z_VGnD.mT @ z_VGnD
        return _half_logdet(small, d / (m * eps**2)).mean(-1).float()


def _small_gram(z_VMD: Tensor, eps: float) -> tuple[Tensor, float]:
    """Returns the Gram matrix of side min(m, D), and its factor."""
    m, d = world_size() * z_VMD.shape[-2], z_VMD.shape[-1]
    scale = d / (m * eps**2)
    if m >= d:
        return all_sum(z_VMD.mT @ z_VMD), scale
    rows_VmD = all_gather(z_VMD.transpose(0, 1)).transpose(0, 1)
    return rows_VmD @ rows_VmD.mT, scale


def _half_logdet(gram_Vkk: Tensor, scale: float) -> Tensor:
    """Returns ½ log det(I + scale·gram), the sum of the logarithms of the Cholesky diagonal."""
    eye_kk = torch.eye(gram_Vkk.shape[-1], dtype=gram_Vkk.dtype, device=gram_Vkk.device)
    factor_Vkk, failed_V = torch.linalg.cholesky_ex(eye_kk + scale * gram_Vkk)
    rate_V = factor_Vkk.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(failed_V == 0, rate_V, torch.nan)
