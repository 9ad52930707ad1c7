"""Supervised classification: cross-entropy with label smoothing.

Paper: Ma et al., ch. 7, §7.3, eq. (7.3.2) (CRATE's training); Szegedy et al. 2016, §7 (label
smoothing).

Code: Ma-Lab/CRATE at 674408f (main.py: RandomResizedCrop and flip, smoothing 0.1).

    loss = mean over labelled samples of CE((1 - s) · onehot(y) + s / C, softmax(W z + b))

Departures: the LayerNorm before W is the backbone's `norm`. The book also blurs and solarizes, the
code does not: `views` can do both, and by default does as the code.

Shapes: B samples of this slice · C classes · D features.
"""

from dataclasses import dataclass, field
from math import log
from typing import ClassVar

from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.classification import classify
from vitrail.nn.heads import linear_head
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Network


@dataclass(frozen=True)
class Config:
    """CRATE's published values.

    Attributes:
        views: the views of an image: one random crop.
        label_smoothing: share s of the target that is spread over all classes, in [0, 1).
        drop_path: rate of stochastic depth, in [0, 1); none was published.
    """

    views: RandomResizedCrop = field(default_factory=RandomResizedCrop)
    label_smoothing: float = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"supervised: label_smoothing is {self.label_smoothing}; it must be in [0, 1)"
            )


class Supervised(ImageObjective):
    """Trains a backbone and a linear classifier on the source's labels."""

    config: Config
    # exact if every sample has a label, which `mean_over_labels` makes the trainer check
    batch_coupled: ClassVar[bool] = False
    mean_over_labels: ClassVar[bool] = True

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        n_classes = facts.n_classes
        assert n_classes is not None  # the registry refuses a source without labels
        self.n_classes = n_classes
        backbone = make_backbone(config.drop_path)
        self.network = Network(backbone, linear_head(backbone.embed_dim, n_classes))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pooled_BD, logits_BC = self.network(batch.views, batch.draws)
        loss, accuracy = classify(logits_BC, batch.label, self.config.label_smoothing)
        return {"loss": loss, "features": pooled_BD.detach(), "accuracy": accuracy}

    @property
    def chance_loss(self) -> float:
        """ln C: every class is equally likely, with or without smoothing."""
        return log(self.n_classes)

    @property
    def encoder(self) -> Backbone:
        return self.network.backbone
