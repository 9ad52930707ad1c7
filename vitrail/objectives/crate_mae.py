"""CRATE-MAE: a white-box masked autoencoder whose decoder is the mirror of its encoder.

Paper: Pai et al. 2024, "Masked Completion via Structured Diffusion with White-Box Transformers"; Ma
et al., ch. 7, §7.6, eqs. (7.6.1)-(7.6.6).

Code: Ma-Lab/CRATE at 674408f (model/crate_ae).

    hidden = a random choice of mask_ratio of the patches
    z    = encoder(class token, all patches, the hidden ones replaced by a mask token; + positions)
    x̂    = decoder(z)      as many layers, each undoing one: h = D LN z;  z = h - MSSA(LN h)
    loss = mean over hidden patches of the mean of (x̂ - x)²

Unlike in MAE, the encoder gets a token for every patch, and the decoder gets no mask tokens.

Departures: patch embedding, final norm and first weights are the backbone's (the code has a
convolution, eps 1e-6 and Xavier-uniform linear maps). The code's ISTA has λ = 0.5, and CRATE's has
0.1: λ is set with the backbone, by `backbone_options=("lmbda=0.5",)` in the recipe. The book takes
the loss over the whole image and subtracts positions before the pixels; the code, as here, does
neither. Backbones of other layers than CRATE's are accepted; the decoder is no inverse of those.

Shapes: B samples of this slice · N patches of an image · K values of a patch · D features ·
H×W patches.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.decoder import CRATEDecoder
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
    """CRATE-MAE's published values.

    Attributes:
        views: the views of an image: one random crop.
        mask_ratio: share of the patches that are hidden, above 0 and below 1.
        norm_pix: normalise the pixels to be predicted within their patch; off in the published
            code.
        fixed_positions: use fixed sine-cosine positions instead of the backbone's learned ones.
            Turn it off to go on from weights with positions of their own, which are then trained.
    """

    views: RandomResizedCrop = field(default_factory=lambda: RandomResizedCrop(scale=(0.2, 1.0)))
    mask_ratio: float = 0.75
    norm_pix: bool = False
    fixed_positions: bool = True

    def __post_init__(self) -> None:
        masked.require_ratio("crate_mae", self.mask_ratio)


class CRATEMAE(ImageObjective):
    """Trains an encoder and its mirrored decoder to fill in hidden patches."""

    config: Config
    # every image has as many hidden patches, so the loss is a mean over samples
    batch_coupled: ClassVar[bool] = False

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        self.backbone = masked.maskable("crate_mae", make_backbone(0.0))
        masked.require_patches(
            "crate_mae", self.backbone, config.views.size, config.mask_ratio, config.norm_pix
        )
        if config.fixed_positions:
            masked.fix_positions(self.backbone)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.backbone.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = CRATEDecoder(
            self.backbone.embed_dim,
            self.backbone.heads,
            patch_size=self.backbone.patch_size,
            depth=len(self.backbone.blocks),
            in_chans=self.backbone.in_chans,
            n_prefix=self.backbone.n_prefix,
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
        patches_BHWD = self.backbone.embed_patches(images)
        grid = patches_BHWD.shape[1:3]
        scores_BN = draws.uniform("mask", grid.numel()).to(images.device)
        hidden_BN = lowest_visible(scores_BN, self.config.mask_ratio).hidden
        hidden_BHW1 = hidden_BN.unflatten(1, grid).unsqueeze(-1)
        mask_token = self.mask_token.to(patches_BHWD.dtype)
        shown_BHWD = torch.where(hidden_BHW1, mask_token, patches_BHWD)
        (encoded_BND,) = self.backbone.encode([self.backbone.assemble(shown_BHWD)])
        return encoded_BND[:, 0], self.decoder(encoded_BND), hidden_BN

    def pictures(self, batch: Batch) -> dict[str, Pictures]:
        patch_size, norm_pix = self.backbone.patch_size, self.config.norm_pix
        return masked.pictures(batch, self.reconstruct, self.plan, patch_size, norm_pix)

    def param_groups(self) -> list[ParamGroup]:
        own: ParamGroup = {"params": [self.mask_token]}
        return [*decay_groups(self.backbone), *decay_groups(self.decoder), own]

    @property
    def encoder(self) -> Backbone:
        return self.backbone
