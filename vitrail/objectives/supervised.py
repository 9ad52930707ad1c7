"""Supervised classification: cross-entropy with label smoothing.

Ma et al., ch. 7, §7.3 (CRATE's training); Szegedy et al. 2016, §7 (label smoothing).
Reference: Ma-Lab/CRATE at 674408f (main.py: RandomResizedCrop and flip, smoothing 0.1).

    loss = mean over labelled samples of CE((1 - s) · onehot(y) + s / C, softmax(W z + b))

Departures from the reference: the LayerNorm before W is the backbone's `norm`.

Shape legend: B samples of this slice · C classes · D features.
"""

from dataclasses import dataclass, field
from math import log
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.data.batch import Batch
from vitrail.data.views import RandomResizedCrop, ViewPlan
from vitrail.nn.collectives import sum_over_ranks, world_size
from vitrail.objectives.contract import MakeBackbone, Objective, ParamGroup
from vitrail.objectives.network import Network
from vitrail.objectives.param_groups import decay_groups
from vitrail.schedules import Horizon

UNLABELLED = -1


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
        head = nn.Linear(backbone.embed_dim, n_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.network = Network(backbone, head)

    def views(self) -> ViewPlan:
        return self.plan

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pooled_BD, logits_BC = self.network(batch.views, batch.draws)
        with torch.autocast(logits_BC.device.type, enabled=False):
            total = F.cross_entropy(
                logits_BC.float(),
                batch.label,
                ignore_index=UNLABELLED,
                label_smoothing=self.config.label_smoothing,
                reduction="sum",
            )
        # The ranks' losses are averaged afterwards, so each divides by the mean count of a rank.
        labelled = sum_over_ranks((batch.label != UNLABELLED).sum()).clamp(min=1) / world_size()
        correct = (logits_BC.detach().argmax(-1) == batch.label).sum()
        return {
            "loss": total / labelled,
            "features": pooled_BD.detach(),
            "accuracy": correct / labelled,
        }

    def param_groups(self) -> list[ParamGroup]:
        return decay_groups(self.network)

    @property
    def chance_loss(self) -> float:
        """ln C: every class equally likely, with or without smoothing."""
        return log(self.n_classes)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone
