"""Co-training: two classifiers that see different views agree on labels that nobody gave them.

Paper: McAllester 2024, "Maximizing Mutual Information" (TTIC 31230 lecture; "The Cotraining
Surrogate Objective"), after Blum & Mitchell 1998.

Code: no reference implementation was published.

    P(k|x) = softmax(Φ(x)),  Q(k|y) = softmax(Ψ(y))       x, y: two views of a sample
    loss   = E H(P(·|x), Q(·|y))  +  E H(Q(·|y), P(·|x))  -  β (H(E P(·|x)) + H(E Q(·|y)))

with H(p, q) = -Σ_k p_k ln q_k and H(p) = H(p, p), in nats; expectations are over the global batch,
and gradients flow into both arguments of the cross-entropies. Since H(p, q) = H(p) + KL(p | q), at
β = 1 the loss is the two divergences minus the mutual informations I(k; x) + I(k; y) of the batch.

It collapses, which is why the lecture shows it: agreement at the uniform distribution is a saddle
point that attracts training. `docs/cotraining.md` measures that, explains why a start in agreement
escapes, and compares with DINO.

Departures: the lecture leaves open what Φ and Ψ are and what they share. Here they share nothing: a
backbone each and a linear layer each, Φ for the first view, Ψ for the second. The lecture does not
fix β or the first weights either. Φ's backbone is exported.

Shapes: B samples of this slice · K labels · D features.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop
from vitrail.distributed.collectives import all_mean
from vitrail.nn.heads import linear_head
from vitrail.nn.schedules import Horizon
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Network
from vitrail.optim import ParamGroup, decay_groups

TINY = 1e-38  # a float32 above 0, since the slope of -p ln p is infinite at 0


@dataclass(frozen=True)
class Config:
    """Co-training with the lecture's number of labels.

    Attributes:
        views: the two views of an image; n_local must be 0.
        n_labels: labels K, the lecture's "hardness parameter", at least 2; the default is its value
            for DINOv2.
        beta: weight β of the entropy of the labels over the batch, >= 0; below 1, one label for
            everything costs less than a uniform output.
        equal_start: start Ψ as a copy of Φ; otherwise their linear layers differ at the start, and
            the two agree on nothing.
        drop_path: rate of stochastic depth in both backbones, in [0, 1).
    """

    views: MultiCrop = field(default_factory=lambda: MultiCrop(n_local=0))
    n_labels: int = 1536
    beta: float = 1.0
    equal_start: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.views.n_local:
            raise ValueError(
                f"cotraining: views.n_local is {self.views.n_local}; each of the two classifiers "
                "sees one view: set it to 0"
            )
        if self.n_labels < 2:
            raise ValueError(f"cotraining: n_labels is {self.n_labels}; it needs at least 2 labels")
        if not self.beta >= 0:
            raise ValueError(f"cotraining: beta is {self.beta}; it must be 0 or more")


class CoTraining(ImageObjective):
    """Trains two classifiers of two views of an image to agree on labels."""

    config: Config
    batch_coupled: ClassVar[bool] = True
    # the mean prediction of one sample is its prediction: one term would raise its entropy, and the
    # other would lower it
    min_batch_size: ClassVar[int] = 2

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        self.phi = classifier(make_backbone(config.drop_path), config.n_labels)
        self.psi = classifier(make_backbone(config.drop_path), config.n_labels)
        if config.equal_start:
            self.psi.load_state_dict(self.phi.state_dict())

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        x, y = batch.views[0].split(batch.size)
        pooled_BD, phi_BK = self.phi([x], batch.draws)
        _, psi_BK = self.psi([y], batch.draws)
        with torch.autocast(phi_BK.device.type, enabled=False):
            log_p_BK, log_q_BK = phi_BK.float().log_softmax(-1), psi_BK.float().log_softmax(-1)
            p_BK, q_BK = log_p_BK.exp(), log_q_BK.exp()
            agreement = -(p_BK * log_q_BK + q_BK * log_p_BK).sum(-1).mean()
            diversity = entropy(all_mean(p_BK.mean(0))) + entropy(all_mean(q_BK.mean(0)))
            loss = agreement - self.config.beta * diversity
            confidence = -(p_BK * log_p_BK + q_BK * log_q_BK).sum(-1).mean()
        return {
            "loss": loss,
            "features": pooled_BD.detach(),
            "embedding": p_BK.detach(),
            # means of the two classifiers, in nats: entropy of a prediction (ln K: collapsed to
            # uniform), entropy of the labels over the batch (0: one label for everything), and
            # divergence between the two
            "entropy": confidence.detach() / 2,
            "label_entropy": diversity.detach() / 2,
            "kl": (agreement - confidence).detach() / 2,
        }

    def param_groups(self) -> list[ParamGroup]:
        return [*decay_groups(self.phi), *decay_groups(self.psi)]

    @property
    def encoder(self) -> Backbone:
        return self.phi.backbone


def classifier(backbone: Backbone, n_labels: int) -> Network:
    """Returns a backbone with a linear layer: pooled features -> one logit for each label."""
    return Network(backbone, linear_head(backbone.embed_dim, n_labels))


def entropy(p: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Returns the entropy H(p) in nats."""
    return -(p * p.clamp(min=TINY).log()).sum()
