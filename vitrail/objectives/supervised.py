"""Supervised classification: cross-entropy with label smoothing.

Ma et al., ch. 7, §7.3, eq. (7.3.2) (CRATE's training); Szegedy et al. 2016, §7 (label smoothing).
Reference: Ma-Lab/CRATE at 674408f (main.py: RandomResizedCrop and flip, smoothing 0.1).

    loss = mean over labelled samples of CE((1 - s) · onehot(y) + s / C, softmax(W z + b))

The book also blurs and solarizes, the code does not: `views` can do both, and by default does as
the code. Departures from the reference: the LayerNorm before W is the backbone's `norm`.

Shape legend: B samples of this slice · C classes · D features.
"""

from dataclasses import dataclass, field
from math import log
from typing import ClassVar

from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop, ViewPlan
from vitrail.nn.classification import classify
from vitrail.nn.heads import linear_head
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import MakeBackbone, Network, Objective
from vitrail.optim import ParamGroup, decay_groups


@dataclass(frozen=True)
class Config:
    """CRATE's published values. label_smoothing: s, in [0, 1). drop_path: none was published."""

    views: RandomResizedCrop = field(default_factory=RandomResizedCrop)
    label_smoothing: float = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"supervised: label_smoothing is {self.label_smoothing}; it must be in [0, 1)"
            )


class Supervised(Objective):
    # Exact when every sample has a label, or each slice as many.
    batch_coupled: ClassVar[bool] = False

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, n_classes: int
    ):
        super().__init__()
        self.config = config
        self.n_classes = n_classes
        self.plan = config.views.plan()
        backbone = make_backbone(config.drop_path)
        self.network = Network(backbone, linear_head(backbone.embed_dim, n_classes))

    def views(self) -> ViewPlan:
        return self.plan

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pooled_BD, logits_BC = self.network(batch.views, batch.draws)
        loss, accuracy = classify(logits_BC, batch.label, self.config.label_smoothing)
        return {"loss": loss, "features": pooled_BD.detach(), "accuracy": accuracy}

    def param_groups(self) -> list[ParamGroup]:
        return decay_groups(self.network)

    @property
    def chance_loss(self) -> float:
        """ln C: every class equally likely, with or without smoothing."""
        return log(self.n_classes)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone
