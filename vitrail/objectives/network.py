"""A backbone and its head: what a student is, and what its teacher is a copy of.

Shape legend: R rows, view-major over all resolutions · D features · O outputs of the head.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.nn.random import Draws


class Network(nn.Module):
    """Parameter names are `backbone.*` and `head.*`, as in DINO's full checkpoints."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R O"]]:
        """Pooled features and head outputs, in the order of the views.

        The backbone runs once over all resolutions, the head once over all rows.
        """
        features = self.backbone.forward_packed(images, draws)
        pooled_RD = torch.cat([f.pooled for f in features])
        return pooled_RD, self.head(pooled_RD)
