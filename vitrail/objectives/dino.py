"""DINO: self-distillation with no labels.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", Algorithm 1 and
eqs. (1)-(4); Ma et al., ch. 7, eqs. (7.2.24)-(7.2.32).
Reference: facebookresearch/dino at 7c446df (main_dino.py: DINOLoss, train_one_epoch).

    g_t  = W_t teacher(global views)            no gradient, no stochastic depth
    z_s  = student(all views)                   unit vectors; one packed pass over the resolutions
    q    = softmax((g_t - c) / τ_t)             centred and sharpened
    loss = mean over view pairs i ≠ j of  -Σ_k q_i · log softmax(W z_s_j / τ_s)
    student <- optimizer;  teacher <- λ teacher + (1 - λ) student;  c <- m c + (1 - m) mean(g_t)

Departures from the reference: none in the mathematics. The student's logits W z_s of all views are
never held at once: the loss and its gradients are made together, some rows at a time
(`nn/prototype_entropy.py`). (The book swaps the temperatures' names: τ_s is the fixed 0.1. Its sums
name i = j pairs that its count leaves out, as the code does.)

Shape legend: V views a sample (the first 2 global) · B samples of this slice · K prototypes ·
Z bottleneck · D features.
"""

from dataclasses import dataclass, field
from math import floor, log
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop, ViewPlan
from vitrail.distributed.collectives import mean_over_ranks
from vitrail.nn.ema import ema_update, make_teacher
from vitrail.nn.heads import PrototypeHead, WeightNormLinear
from vitrail.nn.prototype_entropy import prototype_entropy
from vitrail.nn.schedules import Horizon, cosine
from vitrail.objectives.contract import MakeBackbone, Network, Objective
from vitrail.optim import ParamGroup, decay_groups

SHOWN_PROTOTYPES = 256  # to the health check: enough to tell whether they depend on the input


@dataclass(frozen=True)
class Config:
    """DINO's published defaults.

    out_dim: K. norm_last_layer: prototypes are unit vectors. freeze_last_layer_epochs: the
    prototypes' gradients are dropped for so long. teacher_temp is reached from warmup_teacher_temp
    in equal steps, one an epoch, over warmup_teacher_temp_epochs; the "boosted" runs go from 0.04
    to 0.07 over 30. momentum_teacher rises to 1 along a cosine. drop_path: the student's.
    """

    views: MultiCrop = field(default_factory=MultiCrop)
    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm_last_layer: bool = True
    freeze_last_layer_epochs: float = 1
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 0
    student_temp: float = 0.1
    center_momentum: float = 0.9
    momentum_teacher: float = 0.996
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name in ("warmup_teacher_temp", "teacher_temp", "student_temp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"dino: {name} is {getattr(self, name)}; it must be above 0")
        for name in ("center_momentum", "momentum_teacher"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dino: {name} is {getattr(self, name)}; it must be in [0, 1]")
        for name in ("freeze_last_layer_epochs", "warmup_teacher_temp_epochs"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"dino: {name} is {getattr(self, name)}; it must be 0 or more")
        if self.out_dim < 2:
            raise ValueError(f"dino: out_dim is {self.out_dim}; it needs at least 2 prototypes")


class DINO(Objective):
    # The loss is a mean over samples; the centre moves after the step.
    batch_coupled: ClassVar[bool] = False
    center: Tensor  # [K]

    def __init__(self, config: Config, make_backbone: MakeBackbone, horizon: Horizon):
        super().__init__()
        self.config = config
        self.horizon = horizon
        self.plan = config.views.plan()
        backbone = make_backbone(config.drop_path)
        head = PrototypeHead(
            backbone.embed_dim,
            config.out_dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.norm_last_layer,
        )
        self.student = Network(backbone, head)
        self.teacher = make_teacher(self.student)
        self.register_buffer("center", torch.zeros(config.out_dim))

    def views(self) -> ViewPlan:
        return self.plan

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            pooled_2BxD, z_2BxZ = self.teacher([batch.views[0][: 2 * batch.size]])
            teacher_2BxK = prototypes(self.teacher)(z_2BxZ)
        _, z_VBxZ = self.student(batch.views, batch.draws)
        loss, entropy = cross_view_entropy(
            z_VBxZ.unflatten(0, (-1, batch.size)),
            prototypes(self.student).weight(),
            teacher_2BxK.unflatten(0, (2, batch.size)),
            self.center,
            self.config.student_temp,
            self.teacher_temp(step),
        )
        return {
            "loss": loss,
            "features": pooled_2BxD,
            "embedding": teacher_2BxK[:, :SHOWN_PROTOTYPES].clone(),  # which frees the others
            "teacher_entropy": entropy,  # nats; ln K and constant: collapsed to uniform
            "kl": loss.detach() - entropy,  # of the teacher's distribution to the student's
            "teacher_mean": teacher_2BxK.mean(0),
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        ema_update(self.teacher, self.student, self.momentum(step))
        self.center.lerp_(mean_over_ranks(out["teacher_mean"]), 1 - self.config.center_momentum)

    def teacher_temp(self, step: int) -> float:
        """τ_t, constant within an epoch; the warm-up's last epoch already has the final value."""
        first, last = self.config.warmup_teacher_temp, self.config.teacher_temp
        warmup = self.config.warmup_teacher_temp_epochs
        epoch = floor(step / self.horizon.steps_per_epoch + 1e-9)  # 1e-9: 3 / 0.1 is 29.999…
        if epoch >= warmup:
            return last
        return first + (last - first) * epoch / max(1, warmup - 1)

    def momentum(self, step: int) -> float:
        """λ, the share of the teacher that stays."""
        return cosine(step, self.horizon.steps, self.config.momentum_teacher, 1.0)

    def param_groups(self) -> list[ParamGroup]:
        frozen = self.horizon.steps_in(self.config.freeze_last_layer_epochs)
        return [
            *decay_groups(self.student.backbone),
            *decay_groups(self.student.get_submodule("head.mlp")),
            *decay_groups(self.student.get_submodule("head.last_layer"), frozen),
        ]

    @property
    def chance_loss(self) -> float:
        """ln K: the student's output is uniform, whatever the teacher's."""
        return log(self.config.out_dim)

    @property
    def encoder(self) -> Backbone:
        return self.teacher.backbone


def prototypes(network: Network) -> WeightNormLinear:
    """The last layer: W, and z -> W z."""
    layer = network.get_submodule("head.last_layer")
    assert isinstance(layer, WeightNormLinear)
    return layer


def cross_view_entropy(
    student: Float[Tensor, "V B Z"],
    weight: Float[Tensor, "K Z"],
    teacher: Float[Tensor, "2 B K"],
    center: Float[Tensor, " K"],
    student_temp: float,
    teacher_temp: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of student views to the other views' teacher targets; the targets' entropy.

    Student views 0 and 1 are the teacher's. `student` is before its prototypes `weight`, `teacher`
    after its own. Both results are float32, in nats: means over samples and over the 2 V - 2 pairs
    of different views, or over the 2 teacher views.
    """
    log_q_2BK = F.log_softmax((teacher.float() - center) / teacher_temp, dim=-1)
    q_2BK = log_q_2BK.exp()
    entropy = -(q_2BK * log_q_2BK).sum(-1).mean()
    return prototype_entropy(student.float(), weight.float(), q_2BK, student_temp), entropy
