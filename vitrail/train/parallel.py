"""How an objective is compiled and spread over ranks."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitrail.backbones.contract import TokenBackbone
from vitrail.distributed.ranks import Ranks
from vitrail.objectives.contract import Objective
from vitrail.recipes.recipe import Recipe


def parallel(recipe: Recipe, objective: Objective, ranks: Ranks) -> nn.Module:
    """The objective, compiled block by block where that pays, and wrapped for several ranks."""
    on_cuda = ranks.device.type == "cuda"
    if recipe.compile == "on" or (recipe.compile == "auto" and on_cuda):
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
