"""Compilation of an objective, and its distribution over ranks."""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.backbones.contract import TokenBackbone
from vitrail.distributed.ranks import Ranks
from vitrail.objectives.contract import Objective
from vitrail.train.contract import RunSettings


def parallel(settings: RunSettings, objective: Objective[Any], ranks: Ranks) -> nn.Module:
    """Returns the objective, compiled layer by layer if asked for, and wrapped for several ranks.

    Args:
        settings: `compile` says whether to compile; "auto" does on CUDA.
        objective: the objective; its backbones are compiled in place.
        ranks: with more than one, `DistributedDataParallel` wraps the objective.
    """
    on_cuda = ranks.device.type == "cuda"
    if settings.compile == "on" or (settings.compile == "auto" and on_cuda):
        for backbone in (m for m in objective.modules() if isinstance(m, TokenBackbone)):
            compile_blocks(backbone)
    if ranks.world == 1:
        return objective
    return DistributedDataParallel(objective, broadcast_buffers=False)


def compile_blocks(backbone: TokenBackbone) -> None:
    """Compiles each layer in place with `torch.compile`; parameter names do not change.

    Layers of one shape share one compilation. Shapes are static, so each set of resolutions (the
    student's, the teacher's) is compiled once.
    """
    backbone.compiled = True
    for block in backbone.blocks:
        block.compile(dynamic=False)
