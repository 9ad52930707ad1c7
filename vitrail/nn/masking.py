"""Masks of patches, and the error of predictions for hidden patches.

Shape legend: B images · N patches of an image · n visible ones · K values of a patch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NORM_EPS = 1e-6  # of a patch's variance, as in MAE


class Masking(NamedTuple):
    """The mask of a batch.

    Attributes:
        visible: numbers of the visible patches, in the order of their scores, [B, n].
        restore: each patch's place in (visible patches, hidden patches), [B, N].
        hidden: the mask, True for hidden patches, [B, N].
    """

    visible: Int[Tensor, "B n"]
    restore: Int[Tensor, "B N"]
    hidden: Bool[Tensor, "B N"]


def count_visible(n_patches: int, mask_ratio: float) -> int:
    """Returns n, at least 0; rounded down, as in MAE."""
    return int(n_patches * (1 - mask_ratio))


def lowest_visible(scores: Float[Tensor, "B N"], mask_ratio: float) -> Masking:
    """Leaves the n patches of lowest score visible, the same number in each image.

    Args:
        scores: uniform draws, for a uniform mask.
        mask_ratio: the share to hide, in (0, 1).
    """
    n_visible = count_visible(scores.shape[1], mask_ratio)
    # stable: every device then orders equal scores alike
    order_BN = scores.argsort(dim=1, stable=True)
    restore_BN = order_BN.argsort(dim=1, stable=True)
    return Masking(order_BN[:, :n_visible], restore_BN, restore_BN >= n_visible)


def hidden_error(
    predicted: Float[Tensor, "B N K"], target: Float[Tensor, "B N K"], hidden: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Returns the mean squared error of a patch, averaged over the hidden patches only.

    In float32 if the prediction is of half precision and the target is float32.
    """
    error_BN = (predicted - target).square().mean(-1)
    return (error_BN * hidden).sum() / hidden.sum()


def patch_statistics(
    patches: Float[Tensor, "B N K"],
) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Returns mean and standard deviation of every patch's values over all channels, as in MAE.

    The variance is the unbiased one, and 1e-6 is added to it: K must be at least 2.
    """
    variance_BN1, mean_BN1 = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean_BN1, (variance_BN1 + NORM_EPS).sqrt()
