"""DINO: self-distillation with no labels.

Paper: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", Algorithm 1
and eqs. (1)-(4); Ma et al., ch. 7, eqs. (7.2.24)-(7.2.32).

Code: facebookresearch/dino at 7c446df (main_dino.py: DINOLoss, train_one_epoch).

    g_t  = W_t teacher(global views)            no gradient, no stochastic depth
    z_s  = student(all views)                   unit vectors; one packed pass over the resolutions
    q    = softmax((g_t - c) / τ_t)             centred and sharpened
    loss = mean over view pairs i ≠ j of  -Σ_k q_i · log softmax(W z_s_j / τ_s)
    student <- optimizer;  teacher <- λ teacher + (1 - λ) student;  c <- m c + (1 - m) mean(g_t)

Departures: none in the mathematics. Backbones called vit_*_dino resample positions for local crops
as the code does, without antialiasing and with its offset of 0.1; other ViTs with antialiasing. The
student's logits W z_s of all views are never held at once: the loss and its gradients are computed
together, some rows at a time (`nn/prototype_entropy.py`). (The book swaps the names of the
temperatures: τ_s is the fixed 0.1. Its sums contain i = j pairs that its count leaves out; the
code, as here, leaves them out of both.)

Shapes: V views of a sample (the first 2 are global) · B samples of this slice · K prototypes ·
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
from vitrail.data.views.plan import MultiCrop
from vitrail.distributed.collectives import mean_over_ranks
from vitrail.nn.ema import ema_update, make_teacher
from vitrail.nn.heads import PrototypeHead, WeightNormLinear
from vitrail.nn.prototype_entropy import prototype_entropy
from vitrail.nn.schedules import Horizon, cosine
from vitrail.objectives.contract import DataFacts, ImageObjective, MakeBackbone, Network
from vitrail.optim import ParamGroup, decay_groups

MEASURED_PROTOTYPES = 256  # of the health check: enough to see whether they depend on the input


@dataclass(frozen=True)
class Config:
    """DINO's published defaults.

    Attributes:
        views: the views of an image: two global ones and several local ones.
        out_dim: prototypes K, at least 2.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: dimensions Z of the unit vectors that are compared with the prototypes.
        norm_last_layer: keep the prototypes unit vectors.
        freeze_last_layer_epochs: epochs, >= 0, in which the prototypes' gradients are dropped.
        warmup_teacher_temp: temperature τ_t of the teacher in the first epoch, above 0.
        teacher_temp: temperature τ_t of the teacher after its warm-up, above 0; the published
            "boosted" runs go from 0.04 to 0.07 over 30 epochs.
        warmup_teacher_temp_epochs: epochs, >= 0, over which τ_t changes in equal steps, one an
            epoch.
        student_temp: temperature τ_s of the student, above 0.
        center_momentum: momentum m of the centre of the teacher's logits, in [0, 1].
        momentum_teacher: momentum λ of the EMA teacher at the start, in [0, 1]; it rises to 1 along
            a cosine.
        drop_path: rate of stochastic depth in the student, in [0, 1).
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


class DINO(ImageObjective):
    """Trains a student to predict the prototype distribution of its EMA teacher.

    Attributes:
        center: float32 [K], the running mean of the teacher's logits.
    """

    config: Config
    # the loss is a mean over samples; the centre moves after the step
    batch_coupled: ClassVar[bool] = False
    center: Tensor

    def __init__(
        self, config: Config, make_backbone: MakeBackbone, horizon: Horizon, facts: DataFacts
    ):
        super().__init__(config, make_backbone, horizon, facts)
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
            "embedding": teacher_2BxK[:, :MEASURED_PROTOTYPES].clone(),  # a copy, to free the rest
            "teacher_entropy": entropy,  # nats; ln K and constant: collapsed to uniform
            "kl": loss.detach() - entropy,  # of the teacher's distribution to the student's
            "teacher_mean": teacher_2BxK.mean(0),
        }

    def after_step(self, out: dict[str, Tensor], step: int) -> None:
        ema_update(self.teacher, self.student, self.momentum(step))
        self.center.lerp_(mean_over_ranks(out["teacher_mean"]), 1 - self.config.center_momentum)

    def teacher_temp(self, step: int) -> float:
        """Returns τ_t, constant within an epoch and final in the warm-up's last epoch."""
        first, last = self.config.warmup_teacher_temp, self.config.teacher_temp
        warmup = self.config.warmup_teacher_temp_epochs
        epoch = floor(step / self.horizon.steps_per_epoch + 1e-9)  # 1e-9: 3 / 0.1 is 29.999…
        if epoch >= warmup:
            return last
        return first + (last - first) * epoch / max(1, warmup - 1)

    def momentum(self, step: int) -> float:
        """Returns λ, the share of the teacher that stays."""
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
        """ln K: the student's output is uniform, whatever the teacher's is."""
        return log(self.config.out_dim)

    @property
    def encoder(self) -> Backbone:
        return self.teacher.backbone


def prototypes(network: Network) -> WeightNormLinear:
    """Returns the last layer, which holds W and computes z -> W z."""
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
    """Returns the cross-entropy of student views to the other views' targets, and their entropy.

    Both results are float32 scalars in nats: means over samples, and over the 2 V - 2 pairs of
    different views or over the 2 teacher views.

    Args:
        student: unit vectors [V, B, Z] before the prototypes; views 0 and 1 are the teacher's.
        weight: prototypes [K, Z] of the student.
        teacher: logits [2, B, K], after the teacher's own prototypes.
        center: [K], subtracted from the teacher's logits.
        student_temp: τ_s.
        teacher_temp: τ_t.
    """
    log_q_2BK = F.log_softmax((teacher.float() - center) / teacher_temp, dim=-1)
    q_2BK = log_q_2BK.exp()
    entropy = -(q_2BK * log_q_2BK).sum(-1).mean()
    return prototype_entropy(student.float(), weight.float(), q_2BK, student_temp), entropy
