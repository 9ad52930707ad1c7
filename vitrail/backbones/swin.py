"""Swin transformers (Liu et al. 2021) from timm, for images of any size that the patches divide.

Shape legend: B images · C channels · S, s height, width in pixels · H×W cells of a map · D features
of it · w cells a side of a window, n = w² · V windows of a map · h heads · L layers.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from vitrail.backbones.embedding import check_divides, check_images
from vitrail.backbones.families import TimmSwin
from vitrail.backbones.maps import LayerMaps, MapBackbone, scaled

MASKED = -100.0  # added to scores between cells that are not neighbours, as in the official code


class Swin(MapBackbone):
    """timm's Swin without its classifier: the same keys and initial weights.

    At the size it was built for it is timm's function to the bit.

    At other sizes the layers stay the same: windows of w × w cells, shifted by ⌊w/2⌋ in every
    second layer unless one window covers the stage's map at the size it was built for. A map that
    windows do not divide is padded at the bottom and right with zeros, after the norm, and the
    padding is attended to, as in EsViT (microsoft/esvit 2b99c4f). Masks are of the map at hand;
    EsViT's are of the size it was built for, whatever the map. timm differs in two more points: for
    smaller images it builds smaller windows, with smaller tables of biases; and it pads after the
    cyclic shift, not before it, so cells at the bottom of an image attend to those at its top.

    Args:
        net: timm's model, whose modules become this one's.
        patch_size: side of a patch in pixels, P.
        sizes: `in_chans`, `img_size`, `drop_path` and `config` of `MapBackbone`.
    """

    # Any: their submodules are read by name, which torch's types do not allow.
    patch_embed: Any
    layers: Any
    norm: Any

    def __init__(self, net: Any, patch_size: int, **sizes: Any):
        depth = sum(len(stage.blocks) for stage in net.layers)
        super().__init__(embed_dim=net.num_features, depth=depth, **sizes)
        self.patch_size = patch_size
        self.patch_embed = net.patch_embed
        self.layers = net.layers
        self.norm = net.norm
        for i, stage in enumerate(net.layers):
            side = math.ceil(self.img_size / (patch_size * 2**i))  # of the stage's map
            for j, block in enumerate(stage.blocks):
                block.attn_mask = None  # timm's mask is for one size only
                shifts = [w // 2 if j % 2 and side > w else 0 for w in block.window_size]
                block.shift_size = tuple(shifts)

    def no_weight_decay(self) -> set[str]:
        """Returns names of the tables of position biases, as in the official code and timm."""
        return {name for name, _ in self.named_parameters() if "relative_position_bias" in name}

    def check(self, images: Float[Tensor, "B C S s"]) -> None:
        check_images(images, self.patch_size, self.in_chans)

    def walk(
        self,
        images: Float[Tensor, "B C S s"],
        scales: Float[Tensor, "B L branches"] | None = None,
    ) -> Iterator[LayerMaps]:
        x_BHWD = self.patch_embed.norm(self.patch_embed.proj(images).permute(0, 2, 3, 1))
        index = 0
        for stage_name, stage in self.layers.named_children():
            if stage_name != "0":
                x_BHWD = stage.downsample(_padded(x_BHWD, (2, 2)))
            for block_name, block in stage.blocks.named_children():
                half_BHWD = x_BHWD + scaled(window_branch(block, x_BHWD), scales, (index, 0))
                branch_BHWD = block.mlp(block.norm2(half_BHWD))
                x_BHWD = half_BHWD + scaled(branch_BHWD, scales, (index, 1))
                yield LayerMaps(f"layers.{stage_name}.blocks.{block_name}", half_BHWD, x_BHWD)
                index += 1

    def last(self, cells: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        return self.norm(cells)


def window_branch(block: Any, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
    """Returns the attention branch of a block, before stochastic depth.

    The map is padded, shifted, cut into windows, and put together again.
    """
    height, width = x.shape[1:3]
    rows, columns = window = block.window_size
    down, right = shift = block.shift_size
    x_BHWD = _padded(block.norm1(x), window)
    grid = x_BHWD.shape[1] // rows, x_BHWD.shape[2] // columns
    if any(shift):
        x_BHWD = x_BHWD.roll((-down, -right), dims=(1, 2))
    windows_XnD = _to_windows(x_BHWD, window)  # X = B V
    mask = shift_mask(grid, window, shift, windows_XnD) if any(shift) else None
    mixed_XnD = block.attn(windows_XnD, mask=mask)
    split_BGgwwD = mixed_XnD.unflatten(1, window).unflatten(0, (-1, *grid))
    mixed_BHWD = split_BGgwwD.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if any(shift):
        mixed_BHWD = mixed_BHWD.roll((down, right), dims=(1, 2))
    return mixed_BHWD[:, :height, :width]


def shift_mask(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], like: Tensor
) -> Float[Tensor, "V n n"]:
    """Returns 0 between cells that are neighbours in the image, `MASKED` between all others.

    After the cyclic shift, the last windows hold cells from both ends of the image.

    Args:
        grid: number of windows down and across.
        window: cells of a window, down and across.
        shift: cells of the cyclic shift, down and across.
        like: a tensor of the result's device and dtype.
    """
    down, across = grid[0] * window[0], grid[1] * window[1]
    wrapped_H = torch.arange(down, device=like.device) >= down - shift[0]
    wrapped_W = torch.arange(across, device=like.device) >= across - shift[1]
    side_HW = 2 * wrapped_H[:, None] + 1 * wrapped_W
    side_Vn = _to_windows(side_HW[None, :, :, None], window).squeeze(-1)
    apart_Vnn = side_Vn[:, :, None] != side_Vn[:, None, :]
    return apart_Vnn.to(like.dtype) * MASKED


def _to_windows(x_BHWD: Tensor, window: tuple[int, int]) -> Tensor:
    """Cuts a map [B, H, W, D] into windows [B V, n, D], row by row."""
    rows, columns = window
    split_BGwgwD = x_BHWD.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    return split_BGwgwD.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _padded(x_BHWD: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pads with zeros at the bottom and right, up to sides that `multiple` divides."""
    height, width = x_BHWD.shape[1:3]
    return F.pad(x_BHWD, (0, 0, 0, -width % multiple[1], 0, -height % multiple[0]))


def build(
    row: TimmSwin,
    name: str,
    *,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    overrides: dict[str, Any],
) -> Swin:
    """Builds the backbone of a row. See `BackboneRow.build`."""
    chosen = row.options() | overrides
    for key, value in chosen.items():
        if value < 1:
            raise ValueError(f"backbone {name}: {key} is {value}; it must be at least 1")
    patch_size = chosen["patch_size"]
    size = row.img_size if img_size is None else img_size
    check_divides(size, patch_size, f"img_size of backbone {name},")
    net = SwinTransformer(
        # The row's size: another one would change windows, and so the tables of biases.
        img_size=max(1, row.img_size // patch_size) * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=0,
        embed_dim=row.width,
        depths=row.depths,
        num_heads=row.heads,
        window_size=chosen["window_size"],
    )
    config = {"name": name, "img_size": size, "in_chans": in_chans, **chosen}
    return Swin(
        net, patch_size, in_chans=in_chans, img_size=size, drop_path=drop_path, config=config
    )
