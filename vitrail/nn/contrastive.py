"""Contrastive losses over the global batch."""

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
    """The loss of this rank's share of the global batch, and how many images find their caption.

    Args:
        image, text: float32 unit vectors; rows of the same number belong together. Every rank has
            as many.
        scale: 1/τ.
        index: which pair of the source each row is. The same pair a second time, where one epoch
            ends and the next begins within a batch, is no negative of itself.

    Returns:
        the loss, whose mean over ranks is that of one process with all rows, in nats; and the
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
