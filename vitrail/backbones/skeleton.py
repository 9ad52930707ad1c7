"""The skeleton: an embedding and L layers of (attention operator, token-wise operator).

Packed: the tokens of all images of all resolutions are one [T, D] matrix, on which everything that
acts on a token alone runs once; the attention runs once per resolution.

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N = 1 + H W
tokens of an image, class token first · H×W patches · D features · h heads · L layers · R rows, all
images together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.attention import Attention
from vitrail.backbones.contract import Features, TokenBackbone
from vitrail.backbones.embedding import check_images, resize_positions
from vitrail.backbones.stochastic_depth import branch_scales
from vitrail.nn.random import Draws


@dataclass(frozen=True)
class Family:
    """What the layers of a family of backbones are made of; its models differ in size only."""

    attention: type[Attention]  # built with (D, h)
    tokenwise: type[nn.Module]  # built with (D)
    tokenwise_residual: bool
    patch_embed: type[nn.Module]  # built with (patch size, channels, D)
    norm_eps: float  # of the blocks' LayerNorms and the final one
    init: Callable[["SkeletonBackbone"], None]  # draws the weights that torch's defaults do not


class Block(nn.Module):
    """y = x + a·Attention(LN x); then y + b·TokenWise(LN y), or TokenWise(LN y) without residual.

    The token-wise operator is called `mlp` in every family, so that a ViT's keys are timm's. a and
    b are the scales of stochastic depth.
    """

    def __init__(self, family: Family, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=family.norm_eps)
        self.attn = family.attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=family.norm_eps)
        self.mlp = family.tokenwise(dim)
        self.tokenwise_residual = family.tokenwise_residual

    def forward(
        self,
        tokens: Float[Tensor, "T D"],
        shapes: list[tuple[int, int]],
        scales: Float[Tensor, "T branches"] | None = None,
    ) -> Float[Tensor, "T D"]:
        return self.tokenwise_step(self.attention_step(tokens, shapes, scales), scales)

    def attention_step(
        self,
        tokens: Float[Tensor, "T D"],
        shapes: list[tuple[int, int]],
        scales: Float[Tensor, "T branches"] | None = None,
    ) -> Float[Tensor, "T D"]:
        branch_TD = self.attn(self.norm1(tokens), shapes)
        return tokens + (branch_TD if scales is None else branch_TD * scales[:, :1])

    def tokenwise_step(
        self, tokens: Float[Tensor, "T D"], scales: Float[Tensor, "T branches"] | None = None
    ) -> Float[Tensor, "T D"]:
        branch_TD = self.mlp(self.norm2(tokens))
        if not self.tokenwise_residual:
            return branch_TD
        return tokens + (branch_TD if scales is None else branch_TD * scales[:, 1:])


class SkeletonBackbone(TokenBackbone):
    """Every token backbone of vitrail: its family says which operators it is made of.

    `pooled` is the class token and `patches` are the patch tokens, both after the final LayerNorm
    `norm`. Official CRATE has no such norm in its transformer: its head is LayerNorm + Linear on
    the class token. That LayerNorm is `norm` here, and is applied to the patches too.

    Stochastic depth works on residual branches, linearly increasing up to `drop_path` in the last
    layer. A family without a residual around its token-wise operator (CRATE) has it around the
    attention only.

    Args:
        img_size: pixels a side, the grid the positions are learned on; views of any other size
            that the patch size divides are accepted, with interpolated positions.
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
        self.in_chans = in_chans
        self.img_size = img_size
        self.patch_size = patch_size
        self.drop_path = drop_path
        self.config = config
        self.grid = img_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = family.patch_embed(patch_size, in_chans, width)
        self.blocks = nn.ModuleList(Block(family, width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=family.norm_eps)
        family.init(self)

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        tokens_TD, shapes = self._pack(images)
        for block, scales in zip(self.blocks, self._scales(tokens_TD, shapes, draws), strict=True):
            tokens_TD = block(tokens_TD, shapes, scales)
        tokens_TD = self.norm(tokens_TD)
        parts = tokens_TD.split([b * n for b, n in shapes])
        return [
            self._features(part.unflatten(0, shape), batch)
            for part, shape, batch in zip(parts, shapes, images, strict=True)
        ]

    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        check_images(images, self.patch_size, self.in_chans)
        patches_BHWD = self.patch_embed(images)
        height, width = patches_BHWD.shape[1:3]
        class_B1D = self.cls_token.expand(len(images), -1, -1)
        tokens_BND = torch.cat([class_B1D, patches_BHWD.flatten(1, 2)], dim=1)
        return tokens_BND + resize_positions(self.pos_embed, self.grid, (height, width))

    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """The class token's weights over the patches in the last layer, per head.

        A softmax's row: with the class token's weight for itself they sum to 1. For MSSA it is
        softmax(w_cls · w_j/√p).
        """
        attention, projected_BNK = self._last_projection(images)
        weights_BhN = attention.class_weights(projected_BNK)
        return weights_BhN[:, :, 1:].unflatten(2, self._grid_of(images))

    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        attention, projected_BNK = self._last_projection(images)
        return attention.keys(projected_BNK)[:, 1:].unflatten(1, self._grid_of(images))

    def layer_states(
        self, images: Float[Tensor, "B C S s"]
    ) -> list[tuple[Float[Tensor, "_ _ D"], Float[Tensor, "_ _ D"]]]:
        tokens_TD, shapes = self._pack([images])
        states = []
        for block in self.blocks:
            assert isinstance(block, Block)
            half_TD = block.attention_step(tokens_TD, shapes)
            tokens_TD = block.tokenwise_step(half_TD)
            states.append((half_TD.unflatten(0, shapes[0]), tokens_TD.unflatten(0, shapes[0])))
        return states

    def _pack(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        embedded = [self.embed(batch) for batch in images]
        shapes = [(tokens.shape[0], tokens.shape[1]) for tokens in embedded]
        return torch.cat([tokens.flatten(0, 1) for tokens in embedded]), shapes

    def _scales(
        self, tokens_TD: Tensor, shapes: list[tuple[int, int]], draws: Draws | None
    ) -> list[Tensor | None]:
        """Stochastic depth's scales [T, 2] for each layer, None where there is nothing to drop."""
        depth = len(self.blocks)
        if draws is None or self.drop_path == 0:
            return [None] * depth
        counts = [count for count, _ in shapes]
        scales_RL2 = branch_scales(draws, sum(counts), self.drop_path, depth).to(tokens_TD)
        parts = [
            part.unsqueeze(1).expand(-1, n, -1, -1).flatten(0, 1)
            for part, (_, n) in zip(scales_RL2.split(counts), shapes, strict=True)
        ]
        return list(torch.cat(parts).unbind(1))

    def _last_projection(self, images: Tensor) -> tuple[Attention, Tensor]:
        tokens_TD, shapes = self._pack([images])
        *before, last = self.blocks
        for block in before:
            tokens_TD = block(tokens_TD, shapes)
        assert isinstance(last, Block)
        return last.attn, last.attn.project(last.norm1(tokens_TD)).unflatten(0, shapes[0])

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _features(self, tokens_BND: Tensor, images: Tensor) -> Features:
        patches_BHWD = tokens_BND[:, 1:].unflatten(1, self._grid_of(images))
        return Features(pooled=tokens_BND[:, 0], patches=patches_BHWD)
