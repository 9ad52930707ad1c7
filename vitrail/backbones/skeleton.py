"""The skeleton: an embedding and L layers of (attention operator, token-wise operator).

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N = 1 + R +
H W tokens of an image, class token first, then registers · H×W patches · D features · h heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone, Features, LayerState, MaskableBackbone
from vitrail.backbones.embedding import check_divides, check_images, resize_positions
from vitrail.backbones.layers import (
    Kind,
    block_states,
    last_projection,
    pack,
    run_blocks,
    stack,
    undecayed,
    unpack,
)
from vitrail.backbones.stochastic_depth import plan_drops
from vitrail.nn.random import Draws


@dataclass(frozen=True)
class Family:
    """What a family of backbones is made of; its models differ in size only.

    registers: tokens that belong to no patch (Darcet et al. 2024). antialias: of positions, when
    they are resampled for another size; see `resize_positions`.
    """

    kind: Kind
    patch_embed: type[nn.Module]  # built with (patch size, channels, D)
    init: Callable[["SkeletonBackbone"], None]  # draws the weights that torch's defaults do not
    registers: int = 0
    antialias: bool = True


class SkeletonBackbone(MaskableBackbone):
    """A class token, registers and patches through layers of one kind.

    `pooled` is the class token and `patches` are the patch tokens, both after the final LayerNorm
    `norm`. Official CRATE has no such norm in its transformer: its head is LayerNorm + Linear on
    the class token. That LayerNorm is `norm` here, and is applied to the patches too. Registers
    have no positions, and are inserted after the class token, as in DINOv2.

    Stochastic depth works on residual branches, linearly increasing up to `drop_path` in the last
    layer.

    Args:
        img_size: pixels a side, the grid the positions are learned on; images of any other size
            that the patch size divides are accepted, with resampled positions.
        config: what `create_backbone` needs to build the same architecture again.
    """

    def __init__(
        self,
        family: Family,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        img_size: int,
        in_chans: int,
        drop_path: float,
        config: dict[str, Any],
    ):
        super().__init__()
        self.embed_dim = width
        self.heads = heads
        self.in_chans = in_chans
        self.img_size = img_size
        self.patch_size = patch_size
        self.drop_path = drop_path
        self.config = config
        self.antialias = family.antialias
        self.n_prefix = 1 + family.registers
        self.checkpointing = False  # see `run_blocks`
        self.grid = img_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        registers_1RD = torch.zeros(1, family.registers, width)
        self.register_tokens = nn.Parameter(registers_1RD) if family.registers else None
        self.patch_embed = family.patch_embed(patch_size, in_chans, width)
        self.blocks = stack(family.kind, width, heads, depth)
        self.norm = family.kind.build_norm(width)
        family.init(self)

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        encoded = self.encode([self.embed(batch) for batch in images], draws)
        return [
            Features(
                pooled=tokens_BND[:, 0],
                patches=tokens_BND[:, self.n_prefix :].unflatten(1, self._grid_of(batch)),
            )
            for tokens_BND, batch in zip(encoded, images, strict=True)
        ]

    def embed_patches(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        check_images(images, self.patch_size, self.in_chans)
        return self.patch_embed(images)

    def assemble(self, patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B N D"]:
        count, height, width = patches.shape[:3]
        class_B1D = self.cls_token.expand(count, -1, -1)
        tokens_BND = torch.cat([class_B1D, patches.flatten(1, 2)], dim=1)
        tokens_BND = tokens_BND + self.positions((height, width))
        if self.register_tokens is None:
            return tokens_BND
        registers_BRD = self.register_tokens.expand(count, -1, -1).to(tokens_BND.dtype)
        return torch.cat([tokens_BND[:, :1], registers_BRD, tokens_BND[:, 1:]], dim=1)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n D"]:
        """The class token's position and those of a grid of H × W patches, n = 1 + H W."""
        return resize_positions(self.pos_embed, self.grid, grid, self.antialias)

    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        tokens_TD, shapes = pack(tokens)
        depth, skip = len(self.blocks), not self.compiled
        drops = plan_drops(draws, shapes, self.drop_path, depth, tokens_TD, skip)
        tokens_TD = run_blocks(self.blocks, tokens_TD, shapes, drops, self.checkpointing)
        return unpack(self.norm(tokens_TD), shapes)

    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """The last layer's maps over the patches, per head.

        With attention weights: a softmax's row; with the class token's weights for itself and the
        registers they sum to 1. For MSSA it is softmax(w_cls · w_j/√p).
        """
        attention, projected_BNK = last_projection(self.blocks, self.embed(images))
        maps_BhN = attention.maps(projected_BNK)
        return maps_BhN[:, :, self.n_prefix :].unflatten(2, self._grid_of(images))

    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        attention, projected_BNK = last_projection(self.blocks, self.embed(images))
        keys_BND = attention.keys(projected_BNK)
        return keys_BND[:, self.n_prefix :].unflatten(1, self._grid_of(images))

    def no_weight_decay(self) -> set[str]:
        return undecayed(self.blocks)

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        return block_states(self.blocks, self.embed(images))

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size


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
