"""Optimizers, the schedules applied to their groups, and gradient clipping, without host syncs."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vitrail.nn.schedules import Horizon, cosine


class ParamGroup(TypedDict, total=False):
    """A group of the optimizer's parameters, with the factors that the schedules apply to it.

    Attributes:
        params: the parameters.
        lr_scale: factor of the scheduled learning rate, default 1.
        layer_decay: a second factor of the learning rate, for the depth of a layer: d**k for a
            layer that lies k layers below the last one. Default 1.
        constant_lr: if True, the rate is the peak rate in every step, without warm-up and cosine
            (SimSiam's predictor); the two factors still apply. Default False.
        wd_scale: factor of the scheduled weight decay, default 1.
        freeze_steps: gradients are dropped while step < freeze_steps, default 0.
    """

    params: list[nn.Parameter]
    lr_scale: float
    layer_decay: float
    constant_lr: bool
    wd_scale: float
    freeze_steps: int


@runtime_checkable
class NamesUndecayed(Protocol):
    """A module, such as a backbone or a text tower, that lists parameters without weight decay."""

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters, relative to the module."""


@dataclass(frozen=True)
class Config:
    """The optimizer and its schedules. The defaults are DINO's (Caron et al. 2021, section 3.2).

    Attributes:
        name: the optimizer: AdamW, or LION (Chen et al. 2023).
        lr: peak learning rate, >= 0; with lr_per_256 it is the rate at a global batch of 256.
        lr_per_256: scale the learning rate linearly with the global batch size.
        min_lr: learning rate at the end of the cosine, >= 0.
        warmup_epochs: epochs of linear warm-up of the learning rate from 0, >= 0.
        warmup_peak: the step at which the warm-up reaches the peak: the first one "after" it, or
            its "last" one, as in the published code of DINO and SimDINO.
        weight_decay: weight decay at the start, >= 0.
        weight_decay_end: weight decay at the end of a cosine from weight_decay; None keeps it
            constant.
        decay: the parameters that weight decay acts on: "matrices", which leaves out biases, norms
            and those that a backbone exempts, or "all", as in the code of CRATE and SwAV.
        betas: the decay rates of the optimizer's two moving averages.
        eps: AdamW's epsilon, >= 0; LION has none.
        clip: largest gradient norm, 0 for no clipping.
        clip_by: "tensor" clips every parameter tensor by itself, as DINO and SimDINO were trained;
            "global" clips the norm over all of them.
    """

    name: Literal["adamw", "lion"] = "adamw"
    lr: float = 5e-4
    lr_per_256: bool = True
    min_lr: float = 1e-6
    warmup_epochs: float = 10.0
    warmup_peak: Literal["after", "last"] = "after"
    weight_decay: float = 0.04
    weight_decay_end: float | None = 0.4
    decay: Literal["matrices", "all"] = "matrices"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 3.0
    clip_by: Literal["tensor", "global"] = "tensor"

    def __post_init__(self) -> None:
        numbers = ("lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end")
        for field in (*numbers, "eps", "clip"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"optim.{field} is {value}; it must be 0 or more")

    def peak_lr(self, batch_size: int) -> float:
        """Returns the learning rate after warm-up for this global batch size."""
        return self.lr * batch_size / 256 if self.lr_per_256 else self.lr


def build_optimizer(config: Config, groups: list[ParamGroup]) -> Optimizer:
    """Returns AdamW (fused) or LION (timm) over an objective's groups; rates are set every step."""
    params = [dict(group) for group in groups if group["params"]]
    if config.name == "lion":
        from timm.optim import Lion  # lazy import: timm takes seconds

        return Lion(params, lr=0.0, betas=config.betas, weight_decay=0.0)
    return AdamW(params, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def apply_schedules(
    optimizer: Optimizer, config: Config, horizon: Horizon, batch_size: int, step: int
) -> tuple[float, float]:
    """Sets every group's learning rate and weight decay for this step, and returns the scheduled
    two, without the groups' factors."""
    warmup = horizon.steps_in(config.warmup_epochs)
    peak = config.peak_lr(batch_size)
    last = config.warmup_peak == "last"
    lr = cosine(step, horizon.steps, peak, config.min_lr, warmup, inclusive=last)
    decay_end = config.weight_decay if config.weight_decay_end is None else config.weight_decay_end
    weight_decay = cosine(step, horizon.steps, config.weight_decay, decay_end)
    for group in optimizer.param_groups:
        rate = peak if group.get("constant_lr", False) else lr
        group["lr"] = rate * group.get("lr_scale", 1.0) * group.get("layer_decay", 1.0)
        scale = 1.0 if config.decay == "all" else group.get("wd_scale", 1.0)
        group["weight_decay"] = weight_decay * scale
    return lr, weight_decay


def drop_frozen_gradients(optimizer: Optimizer, step: int) -> None:
    """Drops the gradients of groups that are still frozen; their moments do not change either."""
    for group in optimizer.param_groups:
        if step < group.get("freeze_steps", 0):
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], config: Config) -> Float[Tensor, ""]:
    """Clips gradients in place, and returns the norm over all of them before. No host sync."""
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
    """Returns the parameters that take gradients as two groups: with weight decay, and without it.

    Biases and other 1-D parameters (scales of norms) carry none, as in DINO's `get_params_groups`,
    nor do those that any module lists in `no_weight_decay` (the temperatures of TSSA, in images and
    in text). Empty groups are left out.

    Args:
        module: the module whose parameters are grouped.
        freeze_steps: gradients are dropped while step < freeze_steps.
    """
    exempt = {
        part.get_parameter(name)
        for part in module.modules()
        if isinstance(part, NamesUndecayed)
        for name in part.no_weight_decay()
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
