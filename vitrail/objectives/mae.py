"""MAE: masked autoencoders, which predict the pixels of hidden patches from the visible ones.

Paper: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3 and appendix
A.1; Ma et al., ch. 7, §7.6, eq. (7.6.1).

Code: facebookresearch/mae at efb2a80 (models_mae.py: MaskedAutoencoderViT).

    visible, hidden = a random split of the patches, mask_ratio of them hidden
    z    = encoder(class token, visible patches with positions)
    x̂    = decoder(z, a mask token at every hidden place)
    loss = mean over hidden patches of the mean of (x̂ - x)²
           x: the patch's pixels, minus their mean and over their deviation (norm_pix)

Departures: weights start as the backbone draws them (MAE: Xavier-uniform linear maps). The mask of
a sample is a function of (seed, step, sample). Registers, which MAE does not have, are always
visible, and the decoder does not get them.

Shapes: B samples of this slice · N patches of an image · n visible ones · K values of a patch ·
D features.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.backbones.decoder import ViTDecoder
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.masking import hidden_error, lowest_visible
from vitrail.nn.random import Draws
from vitrail.nn.schedules import Horizon
from vitrail.objectives import masked
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Pictures
from vitrail.optim import ParamGroup, decay_groups


@dataclass(frozen=True)
class Config:
    """MAE's published values; norm_pix is on in its recipes.

    Attributes:
        views: the views of an image: one random crop.
        mask_ratio: share of the patches that are hidden, above 0 and below 1.
        norm_pix: normalise the pixels to be predicted within their patch.
        fixed_positions: use fixed sine-cosine positions instead of the backbone's learned ones.
            Turn it off to go on from weights with positions of their own, which are then trained.
        decoder_width: features of a token in the decoder.
        decoder_depth: layers of the decoder.
        decoder_heads: attention heads of the decoder; they divide decoder_width.
    """

    views: RandomResizedCrop = field(default_factory=lambda: RandomResizedCrop(scale=(0.2, 1.0)))
    mask_ratio: float = 0.75
    norm_pix: bool = True
    fixed_positions: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        masked.require_ratio("mae", self.mask_ratio)
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"mae: {name} is {getattr(self, name)}; it must be at least 1")


class MAE(ImageObjective):
    """Trains an encoder of visible patches, and a decoder that predicts the hidden ones."""

    config: Config
    # every image has as many hidden patches, so the loss is a mean over samples
    batch_coupled: ClassVar[bool] = False

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        self.backbone = masked.maskable("mae", make_backbone(0.0))
        masked.require_patches(
            "mae", self.backbone, config.views.size, config.mask_ratio, config.norm_pix
        )
        if config.fixed_positions:
            masked.fix_positions(self.backbone)
        self.decoder = ViTDecoder(
            self.backbone.embed_dim,
            patch_size=self.backbone.patch_size,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            in_chans=self.backbone.in_chans,
        )

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images = batch.views[0]
        class_BD, predicted_BNK, hidden_BN = self.reconstruct(images, batch.draws)
        target_BNK = masked.targets(images, self.backbone.patch_size, self.config.norm_pix)
        return {
            "loss": hidden_error(predicted_BNK, target_BNK, hidden_BN),
            "features": class_BD.detach(),
        }

    def reconstruct(
        self, images: Float[Tensor, "B C S S"], draws: Draws
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N K"], Bool[Tensor, "B N"]]:
        """Returns the class token, the prediction of every patch, and the mask of hidden ones."""
        prefix = self.backbone.n_prefix
        tokens_BND = self.backbone.embed(images)
        patches_BND = tokens_BND[:, prefix:]
        scores_BN = draws.uniform("mask", patches_BND.shape[1]).to(images.device)
        visible_Bn, restore_BN, hidden_BN = lowest_visible(scores_BN, self.config.mask_ratio)
        visible_BnD = patches_BND.take_along_dim(visible_Bn.unsqueeze(-1), dim=1)
        (encoded_BnD,) = self.backbone.encode([torch.cat([tokens_BND[:, :prefix], visible_BnD], 1)])
        class_B1D, seen_BnD = encoded_BnD[:, :1], encoded_BnD[:, prefix:]
        side = images.shape[2] // self.backbone.patch_size
        predicted_BNK = self.decoder(
            torch.cat([class_B1D, seen_BnD], dim=1), restore_BN, (side, side)
        )
        return class_B1D[:, 0], predicted_BNK, hidden_BN

    def pictures(self, batch: Batch) -> dict[str, Pictures]:
        patch_size, norm_pix = self.backbone.patch_size, self.config.norm_pix
        return masked.pictures(batch, self.reconstruct, self.plan, patch_size, norm_pix)

    def param_groups(self) -> list[ParamGroup]:
        return [*decay_groups(self.backbone), *decay_groups(self.decoder)]

    @property
    def encoder(self) -> Backbone:
        return self.backbone
