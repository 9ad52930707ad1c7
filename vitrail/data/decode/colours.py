"""Images of any number of channels and any range, as colours that can be shown."""

import torch
from jaxtyping import Float
from torch import Tensor

CUT = 0.01  # share of the pixels left out at each end of a scale


def in_colours(
    pixels: Float[Tensor, "B C H W"], scaled: bool = False
) -> Float[Tensor, "B colours H W"]:
    """Returns images in [0, 1] as grey or RGB, in [0, 1].

    One channel is grey, three are RGB; two are shown by their mean, and of more the first three.

    Args:
        pixels: images, in [0, 1].
        scaled: stretch each image from its darkest to its brightest pixel, but for CUT of them at
            either end. For numbers that need not fill their range: 12 bits in 16, reflectances,
            two channels, ...
    """
    count = pixels.shape[1]
    if count == 2:
        pixels = pixels.mean(1, keepdim=True)
    elif count > 3:
        pixels = pixels[:, :3]
    pixels = pixels.clamp(0, 1)
    if not scaled:
        return pixels
    sorted_BN = pixels.flatten(1).sort(dim=1).values
    last = sorted_BN.shape[1] - 1
    low_B, high_B = (sorted_BN[:, round(share * last)] for share in (CUT, 1 - CUT))
    low, span = (v[:, None, None, None] for v in (low_B, (high_B - low_B).clamp(min=1e-6)))
    return ((pixels - low) / span).clamp(0, 1)


def fill_no_range(image: Tensor) -> bool:
    """Returns True for an image [C, H, W] to be stretched: of 16 bits, or neither grey nor RGB."""
    return image.dtype == torch.uint16 or image.shape[0] not in (1, 3)
