"""Contrastive losses over the global batch.

Shape legend: B pairs of a rank · G of the global batch · Z dimensions of the joint space.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.distributed.collectives import all_gather, rank


def info_nce(
    image: Float[Tensor, "B Z"],
    text: Float[Tensor, "B Z"],
    scale: Float[Tensor, ""],
    index: Int[Tensor, " B"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns InfoNCE over the global batch, and the share of images that find their own caption.

    van den Oord et al. 2018, eq. (4), in both directions as in CLIP (Radford et al. 2021, Figure
    3). Every rank compares its own images with all captions, and its own captions with all images.

    Args:
        image: float32 unit vectors [B, Z] of this rank. Every rank has as many.
        text: float32 unit vectors [B, Z]; row b belongs to row b of `image`.
        scale: 1/τ, a scalar.
        index: int64 [B], a number of the sample, or of the image, that each row is of. Rows of one
            number are no negatives of each other: an image may have several captions, and where
            one epoch ends and the next begins within a batch, a sample may come twice.

    Returns:
        The loss in nats, whose mean over ranks is that of one process with all rows; and the
        fraction of this rank's images whose own caption is nearest, detached.
    """
    with torch.autocast(image.device.type, enabled=False):
        all_images_GZ, all_texts_GZ = all_gather(image), all_gather(text)
        own_B = rank() * len(image) + torch.arange(len(image), device=image.device)
        again_BG = index[:, None] == all_gather(index)
        again_BG.scatter_(1, own_B[:, None], False)
        image_logits_BG = (scale * image @ all_texts_GZ.T).masked_fill(again_BG, -torch.inf)
        text_logits_BG = (scale * text @ all_images_GZ.T).masked_fill(again_BG, -torch.inf)
        loss = F.cross_entropy(image_logits_BG, own_B) + F.cross_entropy(text_logits_BG, own_B)
    found = (image_logits_BG.detach().argmax(1) == own_B).float().mean()
    return loss / 2, found
