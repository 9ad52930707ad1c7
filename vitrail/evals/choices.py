"""Which features of a frozen encoder a linear classifier may look at.

DINO (Caron et al. 2021, and `eval_linear.py` of facebookresearch/dino at 7c446df) takes the class
tokens of the last four layers of small models, and class token and mean patch of base ones; DINOv2
(Oquab et al. 2023, and `eval/linear.py` of facebookresearch/dinov2) tries these and both together.

Shape legend: B images · C channels · S pixels a side · N tokens · D features · E columns.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.encoder import Encoder, evaluating

Array = np.ndarray

LAST_BLOCKS = 4
TOGETHER = 32  # images whose layers are all held at once

POOLED, WITH_PATCHES = "pooled", "pooled + mean patch"


class FeatureChoices:
    """An embedding whose columns hold all choices, each of them one run of columns.

    Columns: the mean patch, the pooled feature, and the class tokens of the layers before, after
    the backbone's final norm, going backwards. With a class token that passes all layers (ViT,
    CRATE, AoT, ToST-ViT), the pooled feature is the last layer's: there are "pooled", "pooled +
    mean patch", "last n class tokens", and these "+ mean patch". ToST has no class token to look
    at in its layers; ResNet and Swin, whose pooled feature is the mean of the patches, have it
    alone.

    Args:
        encoder: frozen.
        last_blocks: n, at least 1; clipped to the layers that there are.
    """

    def __init__(self, encoder: Encoder, last_blocks: int = LAST_BLOCKS):
        if last_blocks < 1:
            raise ValueError(f"last_blocks is {last_blocks}; it must be at least 1")
        self._backbone = encoder.backbone
        self._n_last = _layers_of(encoder.backbone, last_blocks)
        width = encoder.embed_dim
        self.columns = {POOLED: slice(0, width)}
        if isinstance(encoder.backbone, TokenBackbone):
            self.columns = {POOLED: slice(width, 2 * width), WITH_PATCHES: slice(0, 2 * width)}
        if self._n_last > 1:
            name = f"last {self._n_last} class tokens"
            self.columns[name] = slice(width, (1 + self._n_last) * width)
            self.columns[f"{name} + mean patch"] = slice(0, (1 + self._n_last) * width)

    def embed(self, pixels: Float[Tensor, "B C S S"]) -> Float32[Array, "B E"]:
        """The columns of one preprocessed batch."""
        device = next(self._backbone.parameters()).device
        with evaluating(self._backbone):
            parts = [self._columns_of(part.to(device)) for part in pixels.split(TOGETHER)]
        return torch.cat(parts).float().cpu().numpy()

    def _columns_of(self, pixels_BCSS: Tensor) -> Tensor:
        backbone = self._backbone
        if not isinstance(backbone, TokenBackbone):
            return backbone(pixels_BCSS).pooled
        if not isinstance(backbone, SkeletonBackbone):
            features = backbone(pixels_BCSS)
            assert features.patches is not None
            return torch.cat([features.patches.mean((1, 2)), features.pooled], dim=1)
        states = backbone.layer_states(pixels_BCSS)[-self._n_last :]
        last_BND = backbone.norm(states[-1].after)
        before = [backbone.norm(state.after[:, 0]) for state in reversed(states[:-1])]
        mean_BD = last_BND[:, backbone.n_prefix :].mean(1)
        return torch.cat([mean_BD, last_BND[:, 0], *before], dim=1)


def _layers_of(backbone: Backbone, wanted: int) -> int:
    """How many layers' class tokens can be had."""
    return min(wanted, len(backbone.blocks)) if isinstance(backbone, SkeletonBackbone) else 1
