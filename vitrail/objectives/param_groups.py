"""Which parameters carry weight decay."""

from torch import nn

from vitrail.backbones.contract import Backbone
from vitrail.objectives.contract import ParamGroup


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
