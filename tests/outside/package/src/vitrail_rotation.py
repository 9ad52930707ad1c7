"""Rotation prediction: which of four quarter turns has an image made?

Paper: Gidaris et al. 2018, https://arxiv.org/abs/1803.07728, equation 3.
Code: none was read.
Departures: one crop instead of the whole image.
Shapes: B samples of this slice · D features · 4 turns.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone
from vitrail.objectives.registry import ObjectiveRow
from vitrail.recipes.named import get_recipe
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.registry import RecipeRow


@dataclass(frozen=True)
class Config:
    """The settings of rotation prediction.

    Attributes:
        views: the crop that is turned.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
    """

    views: RandomResizedCrop = field(default_factory=RandomResizedCrop)
    drop_path: float = 0.0


class Rotation(ImageObjective):
    """Classifies the quarter turn of each image."""

    batch_coupled: ClassVar[bool] = False

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        self.backbone = make_backbone(config.drop_path)
        self.head = nn.Linear(self.backbone.embed_dim, 4)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        turned = torch.cat([torch.rot90(batch.views[0], k, (2, 3)) for k in range(4)])
        (features,) = self.backbone.forward_packed([turned], batch.draws)
        logits = self.head(features.pooled).float()
        turns = torch.arange(4, device=logits.device).repeat_interleave(batch.size)
        return {"loss": F.cross_entropy(logits, turns), "features": features.pooled.detach()}

    @property
    def encoder(self):
        return self.backbone


def rotation_digits() -> Recipe:
    """Rotation prediction, ViT of width 64, on scikit-learn's digits."""
    demo = get_recipe("crate_digits_supervised")
    return Recipe(
        objective=Config(views=demo.objective.views),
        backbone="vit_nano_patch4_32",
        data="digits",
        channels=1,
        batch_size=64,
        epochs=10,
        eval_crop=1.0,
    )


ROW = ObjectiveRow(Rotation, Config, "which quarter turn was made (Gidaris et al. 2018)")
RECIPE = RecipeRow(rotation_digits)
