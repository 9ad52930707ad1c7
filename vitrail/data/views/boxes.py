"""Random boxes of an image: torchvision's RandomResizedCrop, for a whole batch at once.

Shape legend: B images · T tries · U uniforms an image (T × (area, log-ratio), top, left).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

TRIES = 10  # before the central fallback
BOX_UNIFORMS = 2 * TRIES + 2


def sample_boxes(
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniforms: Float[Tensor, "B U"],
    sizes: Int[Tensor, "B 2"],
) -> Int[Tensor, "B 4"]:
    """Returns the first of 10 drawn boxes that fits its image, else a central one.

    The distribution is that of torchvision 0.29's `RandomResizedCrop.get_params` (v1). One position
    is drawn for the box that is taken, where torchvision draws one a try; the distribution is the
    same.

    Args:
        scale: (low, high) of the box's share of the image's area.
        ratio: (low, high) of width / height, uniform in its logarithm.
        uniforms: float32 in [0, 1), BOX_UNIFORMS columns.
        sizes: (height, width) of each image, in pixels.

    Returns:
        int64, (top, left, height, width) in pixels.
    """
    u_BU = uniforms.double()
    height_B1, width_B1 = sizes.double().split(1, dim=1)
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    scale_BT = scale[0] + (scale[1] - scale[0]) * u_BU[:, : 2 * TRIES : 2]
    ratio_BT = torch.exp(log_low + (log_high - log_low) * u_BU[:, 1 : 2 * TRIES : 2])
    area_BT = height_B1 * width_B1 * scale_BT
    w_BT, h_BT = (area_BT * ratio_BT).sqrt().round(), (area_BT / ratio_BT).sqrt().round()
    fits_BT = (w_BT > 0) & (w_BT <= width_B1) & (h_BT > 0) & (h_BT <= height_B1)

    # The fallback is an eleventh try that always fits; argmax finds the first that does.
    h_B1, w_B1 = _central_box(ratio, height_B1, width_B1)
    first_B1 = torch.cat([fits_BT, torch.ones_like(fits_BT[:, :1])], 1).int().argmax(1, True)
    h_B1 = torch.cat([h_BT, h_B1], 1).gather(1, first_B1)
    w_B1 = torch.cat([w_BT, w_B1], 1).gather(1, first_B1)
    free_B2 = torch.cat([height_B1 - h_B1, width_B1 - w_B1], dim=1)
    drawn_B2 = (u_BU[:, 2 * TRIES :] * (free_B2 + 1)).floor()
    corner_B2 = torch.where(first_B1 == TRIES, (free_B2 / 2).floor(), drawn_B2)
    return torch.cat([corner_B2, h_B1, w_B1], dim=1).long()


def _central_box(
    ratio: tuple[float, float], height_B1: Tensor, width_B1: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the (height, width) of the largest box of an allowed ratio, at least one pixel.

    torchvision's may round to 0.
    """
    w_B1 = torch.minimum(width_B1, (height_B1 * ratio[1]).round()).clamp(min=1)
    h_B1 = torch.minimum(height_B1, (width_B1 / ratio[0]).round()).clamp(min=1)
    return h_B1, w_B1
