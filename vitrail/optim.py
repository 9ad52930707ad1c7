"""Optimizers, the schedules applied to their groups, and gradient clipping, without host syncs."""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from jaxtyping import Float
from timm.optim import Lion
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vitrail.backbones.contract import Backbone
from vitrail.nn.schedules import Horizon, cosine


class ParamGroup(TypedDict, total=False):
    """What the optimizer gets, and how the loop's schedules apply to it."""

    params: list[nn.Parameter]
    lr_scale: float  # times the scheduled learning rate, default 1
    wd_scale: float  # times the scheduled weight decay, default 1
    freeze_steps: int  # gradients are dropped while step < freeze_steps, default 0


@dataclass(frozen=True)
class Config:
    """How parameters move. The defaults are DINO's (Caron et al. 2021, section 3.2 and its code).

    lr: peak rate; with `lr_per_256` it is the rate at a global batch of 256, scaled linearly.
    warmup_epochs: linear warm-up of the rate from 0, counted in steps. min_lr: the cosine's end.
    weight_decay, weight_decay_end: a cosine from one to the other; None keeps it constant.
    clip: maximal gradient norm, 0 for none; `clip_by` "tensor" clips every parameter tensor by
        itself, as DINO and SimDINO were trained; "global" clips the norm over all of them.
    """

    name: Literal["adamw", "lion"] = "adamw"
    lr: float = 5e-4
    lr_per_256: bool = True
    min_lr: float = 1e-6
    warmup_epochs: float = 10.0
    weight_decay: float = 0.04
    weight_decay_end: float | None = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    clip_by: Literal["tensor", "global"] = "tensor"

    def __post_init__(self) -> None:
        for field in ("lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "clip"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"optim.{field} is {value}; it must be 0 or more")

    def peak_lr(self, batch_size: int) -> float:
        """The rate after warm-up for this global batch size."""
        return self.lr * batch_size / 256 if self.lr_per_256 else self.lr


def build_optimizer(config: Config, groups: list[ParamGroup]) -> Optimizer:
    """AdamW (fused) or LION (timm) over an objective's groups; rates are set every step."""
    params = [dict(group) for group in groups if group["params"]]
    if config.name == "lion":
        return Lion(params, lr=0.0, betas=config.betas, weight_decay=0.0)
    return AdamW(params, lr=0.0, betas=config.betas, weight_decay=0.0, fused=True)


def apply_schedules(
    optimizer: Optimizer, config: Config, horizon: Horizon, batch_size: int, step: int
) -> tuple[float, float]:
    """Sets every group's rate and decay for this step, and returns the unscaled two."""
    warmup = horizon.steps_in(config.warmup_epochs)
    lr = cosine(step, horizon.steps, config.peak_lr(batch_size), config.min_lr, warmup)
    decay_end = config.weight_decay if config.weight_decay_end is None else config.weight_decay_end
    weight_decay = cosine(step, horizon.steps, config.weight_decay, decay_end)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_scale", 1.0)
    return lr, weight_decay


def drop_frozen_gradients(optimizer: Optimizer, step: int) -> None:
    """Drops the gradients of groups that are still frozen: their moments stay untouched too."""
    for group in optimizer.param_groups:
        if step < group.get("freeze_steps", 0):
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], config: Config) -> Float[Tensor, ""]:
    """Clips in place, and returns the norm over all gradients before clipping. No host sync."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(grads)
    total = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
    if config.clip == 0:
        return total
    if config.clip_by == "global":
        torch._foreach_mul_(grads, (config.clip / (total + 1e-6)).clamp(max=1.0))
    else:
        scales = [(config.clip / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
        torch._foreach_mul_(grads, scales)
    return total


def decay_groups(module: nn.Module, freeze_steps: int = 0) -> list[ParamGroup]:
    """Two groups of the parameters that take gradients: with weight decay, and without it.

    Biases and other 1-D parameters (norms' scales) carry none, as in DINO's `get_params_groups`,
    and what a backbone names (ToST's temperatures). Empty groups are left out.

    Args:
        module: whose parameters.
        freeze_steps: their gradients are dropped while step < freeze_steps.
    """
    exempt = {
        backbone.get_parameter(name)
        for backbone in module.modules()
        if isinstance(backbone, Backbone)
        for name in backbone.no_weight_decay()
    }
    params = [p for p in module.parameters() if p.requires_grad]
    exempt |= {p for p in params if p.ndim <= 1}
    decayed = [p for p in params if p not in exempt]
    free = [p for p in params if p in exempt]
    groups: list[ParamGroup] = [
        {"params": decayed, "freeze_steps": freeze_steps},
        {"params": free, "wd_scale": 0.0, "freeze_steps": freeze_steps},
    ]
    return [group for group in groups if group["params"]]
