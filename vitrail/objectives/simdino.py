"""SimDINO: DINO without prototypes, centre or temperatures; a coding rate keeps features apart.

Paper: Wu et al. 2025, "Simplifying DINO via Coding Rate Regularization"; Ma et al., ch. 7, eqs.
(7.2.8), (7.2.9), (7.2.34)-(7.2.36).

Code: RobinWu218/SimDINO at 8149fc4 (simdino/: MCRLoss, train_one_epoch).

    z_t  = teacher(global views)                unit vectors; no gradient, no stochastic depth
    z_s  = student(all views)                   unit vectors; one packed pass
    loss = coeff · mean over view pairs i ≠ j of ½ |z_t_i - z_s_j|²  -  γ · mean over i of R_ε(Z_i)
    student <- optimizer;  teacher <- λ teacher + (1 - λ) student

with Z_i the global views i of the whole batch and R_ε the coding rate (`nn/coding_rate.py`).

Departures:
- The loss is the book's, with ½ |z_t - z_s|² = 1 - cos where the code has -cos: larger by `coeff`.
- `eps` is ε and is squared. The code passes its eps (0.05) in the place of ε².
- The rate is of the global batch on any number of ranks, as with the code's `reduce_cov=1`. The
  code's default, 0, takes the second moments of each rank, but γ and the scale of all: that is
  `second_moment="local"`, for fixed groups of the global batch in the place of ranks. It rewards
  less: γ R of random unit vectors, with 8 groups of 64, P = 256 and ε² = 0.05, is 0.429, with the
  global second moment 2.086, and 0.843 with that and ε² = 8 · 0.05, where the factors of ZᵀZ agree.
- Positions for local crops are resampled as in the code (no antialiasing, an offset of 0.1) by the
  backbones called vit_*_dino; by other ViTs with antialiasing.
- The rate is computed in float64 rather than inside half-precision autocast.
Read from the code, since the book leaves them open: γ = (p + n) / (p n) for n samples in the global
batch, second moments not centred, i = j pairs left out of the sum as they are of its count.

Shapes: V views of a sample (the first 2 are global) · B samples of this slice · P dimensions of z ·
D features.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop
from vitrail.distributed.collectives import world_size
from vitrail.nn.coding_rate import coding_rate, grouped_coding_rate
from vitrail.nn.ema import ema_update, make_teacher
from vitrail.nn.heads import ProjectionHead
from vitrail.nn.schedules import Horizon, cosine
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Network


@dataclass(frozen=True)
class Config:
    """The values of SimDINO's published ViT-B/16 run.

    Attributes:
        views: the views of an image: two global ones and several local ones.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: dimensions P of the unit vectors z.
        eps: ε of the coding rate, above 0; the default squares to the published 0.05.
        second_moment: of the vectors that the rate is taken of: "global", those of the whole batch,
            or "local", those of each group, as published (a group for each of 8 GPUs).
        groups: number of groups of a "local" second moment; it divides the batch size.
        gamma: weight γ of the coding rate, >= 0; None is (p + n) / (p n), with p = bottleneck_dim
            and n the global batch size.
        coeff: weight of the distance between views.
        expand: the vectors of the coding rate: "student" (the book), or "mean" of student and
            teacher, not renormalised (the code's default).
        momentum_teacher: momentum λ of the EMA teacher at the start, in [0, 1]; it rises to 1 along
            a cosine.
        drop_path: rate of stochastic depth in the student, in [0, 1).
    """

    views: MultiCrop = field(default_factory=MultiCrop)
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    eps: float = 0.05**0.5
    second_moment: Literal["global", "local"] = "global"
    groups: int = 8
    gamma: float | None = None
    coeff: float = 1.0
    expand: Literal["student", "mean"] = "mean"
    momentum_teacher: float = 0.996
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"simdino: eps is {self.eps}; it must be above 0")
        if self.second_moment not in ("global", "local"):
            raise ValueError(
                f"simdino: second_moment is {self.second_moment!r}; it must be 'global' or 'local'"
            )
        if self.groups < 1:
            raise ValueError(f"simdino: groups is {self.groups}; it must be at least 1")
        if self.gamma is not None and not self.gamma >= 0:
            raise ValueError(f"simdino: gamma is {self.gamma}; it must be 0 or more, or None")
        if self.expand not in ("student", "mean"):
            raise ValueError(f"simdino: expand is {self.expand!r}; it must be 'student' or 'mean'")
        if not 0 <= self.momentum_teacher <= 1:
            raise ValueError(
                f"simdino: momentum_teacher is {self.momentum_teacher}; it must be in [0, 1]"
            )


class SimDINO(ImageObjective):
    """Trains a student towards its EMA teacher, with a coding rate against collapse."""

    config: Config
    batch_coupled: ClassVar[bool] = True
    # one unit vector has the same coding rate wherever it points: nothing would prevent collapse
    min_batch_size: ClassVar[int] = 2

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
        backbone = make_backbone(config.drop_path)
        head = ProjectionHead(backbone.embed_dim, config.hidden_dim, config.bottleneck_dim)
        self.student = Network(backbone, head)
        self.teacher = make_teacher(self.student)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            pooled_2BxD, teacher_2BxP = self.teacher([batch.views[0][: 2 * batch.size]])
        _, student_VBxP = self.student(batch.views, batch.draws)
        student_VBP = student_VBxP.unflatten(0, (-1, batch.size))
        teacher_2BP = teacher_2BxP.unflatten(0, (2, batch.size))

        similarity = cross_view_cosine(student_VBP, teacher_2BP)
        expanded_2BP = student_VBP[:2]
        if self.config.expand == "mean":
            expanded_2BP = (expanded_2BP + teacher_2BP) / 2
        rate = self.rate(expanded_2BP).mean()  # a collective over ranks
        loss = self.config.coeff * (1 - similarity) - self.gamma(batch.size) * rate
        return {
            "loss": loss,
            "features": pooled_2BxD,
            "embedding": teacher_2BxP,
            "similarity": similarity.detach(),
            "coding_rate": rate.detach(),  # nats; near the rate of one repeated vector: collapsed
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        ema_update(self.teacher, self.student, self.momentum(step))

    def rate(self, z: Float[Tensor, "V B P"]) -> Float[Tensor, " V"]:
        """Returns the coding rate of the views' vectors, in nats."""
        if self.config.second_moment == "local":
            return grouped_coding_rate(z, self.config.eps, self.config.groups)
        return coding_rate(z, self.config.eps)

    def gamma(self, batch_size: int) -> float:
        """Returns γ, for `batch_size` samples on each rank."""
        if self.config.gamma is not None:
            return self.config.gamma
        p, n = self.config.bottleneck_dim, batch_size * world_size()
        return (p + n) / (p * n)

    def momentum(self, step: int) -> float:
        """Returns λ, the share of the teacher that stays."""
        return cosine(step, self.horizon.steps, self.config.momentum_teacher, 1.0)

    @property
    def encoder(self) -> Backbone:
        return self.teacher.backbone


def cross_view_cosine(
    student: Float[Tensor, "V B P"], teacher: Float[Tensor, "2 B P"]
) -> Float[Tensor, ""]:
    """Returns the mean cosine over the 2 V - 2 pairs of different views and over samples.

    Args:
        student: float32 unit vectors [V, B, P]; views 0 and 1 are the teacher's.
        teacher: float32 unit vectors [2, B, P].
    """
    # a global view is compared with the other one's target, a local view with both
    across = (student[:2] * teacher.flip(0)).sum() + (student[2:].sum(0) * teacher.sum(0)).sum()
    return across / ((2 * len(student) - 2) * student.shape[1])
