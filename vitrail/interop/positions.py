"""A backbone for another image size: only the table of positions depends on it.

Shape legend: G×G the grid for which positions are learned · D features.
"""

import torch
from torch import nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.embedding import check_divides, resize_positions
from vitrail.backbones.skeleton import SkeletonBackbone


def change_size(backbone: Backbone, img_size: int) -> None:
    """Makes `img_size` the size that a backbone is built for, in place.

    Learned positions are resampled as the backbone itself does for images of that size, so that
    its features of such images stay the same.

    Raises:
        ValueError: a size that the patch does not divide.
    """
    name = backbone.config.get("name", type(backbone).__name__)
    patch_size = backbone.config.get("patch_size", 1)
    check_divides(img_size, patch_size, f"img_size of backbone {name},")
    if isinstance(backbone, SkeletonBackbone):
        _change_positions(backbone, img_size // backbone.patch_size)
    backbone.img_size = img_size
    backbone.config = backbone.config | {"img_size": img_size}


def _change_positions(backbone: SkeletonBackbone, grid: int) -> None:
    learned = backbone.pos_embed
    with torch.no_grad():
        resized = resize_positions(learned, backbone.grid, (grid, grid), backbone.antialias)
    backbone.pos_embed = nn.Parameter(resized, requires_grad=learned.requires_grad)
    backbone.grid = grid
