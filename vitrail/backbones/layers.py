"""Layers over packed tokens, and stacks of them: the parts of every backbone of tokens.

Packed: the tokens of all images of all resolutions are one [T, D] matrix. Maps that act on each
token alone run once on it; the attention runs once for each resolution.

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N tokens of
an image · D features · h heads · L layers.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.backbones.contract import LayerState
from vitrail.backbones.operators.attention import Attention
from vitrail.backbones.stochastic_depth import Drop, Shapes, add_branch


def truncated_normal_linear(module: nn.Module, width: int) -> None:
    """Draws ViT's initial linear maps: truncated normal with deviation 0.02, zero biases.

    Below width 192, where nothing is published, the deviation is 0.8 / sqrt(width): with 0.02,
    branches would be negligible beside their residual.
    """
    std = 0.02 if width >= 192 else 0.8 * width**-0.5
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.trunc_normal_(linear.weight, std=std)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def xavier_linear(module: nn.Module) -> None:
    """Draws MAE's and CRATE-MAE's initial linear maps: Xavier-uniform, zero biases."""
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


@dataclass(frozen=True)
class Kind:
    """The operators and norms of a layer.

    Attributes:
        attention: attention operator, built with (D, h).
        tokenwise: token-wise operator, built with (D); None for a layer of attention only.
        residual: add the token-wise operator's input to its output.
        norm_eps: epsilon of the LayerNorms.
        norm_bias: give the LayerNorms biases.
        layer_scale: initial value of a learned factor for every feature of a branch (Touvron et al.
            2021); None for no such factor.
        arguments: keyword arguments; each operator gets those that its constructor has.
    """

    attention: type[Attention]
    tokenwise: type[nn.Module] | None
    residual: bool = True
    norm_eps: float = 1e-6
    norm_bias: bool = True
    layer_scale: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def build_attention(self, dim: int, heads: int) -> Attention:
        return self.attention(dim, heads, **self._known_to(self.attention))

    def build_tokenwise(self, dim: int) -> nn.Module:
        assert self.tokenwise is not None
        return self.tokenwise(dim, **self._known_to(self.tokenwise))

    def build_norm(self, dim: int, eps: float | None = None) -> nn.LayerNorm:
        eps = self.norm_eps if eps is None else eps
        return nn.LayerNorm(dim, eps=eps, bias=self.norm_bias)

    def build_layer_scale(self, dim: int) -> nn.Module:
        return nn.Identity() if self.layer_scale is None else LayerScale(dim, self.layer_scale)

    def operators(self) -> list[type[nn.Module]]:
        return [self.attention] + ([] if self.tokenwise is None else [self.tokenwise])

    def defaults(self) -> dict[str, Any]:
        """Returns the keyword arguments of its operators, with this kind's values."""
        known = {k: v for operator in self.operators() for k, v in keywords(operator).items()}
        return known | self.arguments

    def _known_to(self, operator: type[nn.Module]) -> dict[str, Any]:
        return {k: v for k, v in self.arguments.items() if k in keywords(operator)}


def keywords(operator: type[nn.Module]) -> dict[str, Any]:
    """Returns the keyword-only arguments of an operator's constructor, with their defaults."""
    parameters = inspect.signature(operator).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


class LayerScale(nn.Module):
    """LayerScale: a learned factor for every feature (key `gamma`, as in DINOv2 and timm)."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(value)))

    def forward(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return tokens * self.gamma


class Block(nn.Module):
    """A layer: y = x + a·γ₁·Attention(LN x); then y + b·γ₂·TokenWise(LN y), or TokenWise(LN y).

    The token-wise operator is called `mlp` in every family: the keys of a ViT are timm's. a and b
    are the scales of stochastic depth, γ those of LayerScale, if any. Without a residual around its
    token-wise operator (CRATE), a layer has a and γ₁ only.
    """

    def __init__(self, kind: Kind, dim: int, heads: int):
        super().__init__()
        self.norm1 = kind.build_norm(dim)
        self.attn = kind.build_attention(dim, heads)
        self.ls1 = kind.build_layer_scale(dim)
        self.norm2 = kind.build_norm(dim) if kind.tokenwise else None
        self.mlp = kind.build_tokenwise(dim) if kind.tokenwise else None
        self.ls2 = (
            kind.build_layer_scale(dim) if kind.tokenwise and kind.residual else nn.Identity()
        )
        self.residual = kind.residual

    def forward(
        self,
        tokens: Float[Tensor, "T D"],
        shapes: Shapes,
        drops: tuple[Drop, Drop] = (None, None),
    ) -> Float[Tensor, "T D"]:
        return self.tokenwise_step(self.attention_step(tokens, shapes, drops[0]), shapes, drops[1])

    def attention_step(
        self, tokens: Float[Tensor, "T D"], shapes: Shapes, drop: Drop = None
    ) -> Float[Tensor, "T D"]:
        return add_branch(tokens, self._attend, shapes, drop)

    def tokenwise_step(
        self, tokens: Float[Tensor, "T D"], shapes: Shapes, drop: Drop = None
    ) -> Float[Tensor, "T D"]:
        if self.mlp is None:
            return tokens
        if not self.residual:
            return self._tokenwise(tokens, shapes)
        return add_branch(tokens, self._tokenwise, shapes, drop)

    def project(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T K"]:
        """Returns the attention's projection of each token, which it mixes next."""
        return self.attn.project(self.norm1(tokens))

    def _attend(self, tokens_TD: Tensor, shapes: Shapes) -> Tensor:
        return self.ls1(self.attn(self.norm1(tokens_TD), shapes))

    def _tokenwise(self, tokens_TD: Tensor, shapes: Shapes) -> Tensor:
        assert self.mlp is not None
        assert self.norm2 is not None
        return self.ls2(self.mlp(self.norm2(tokens_TD)))


def stack(kind: Kind, dim: int, heads: int, depth: int) -> nn.ModuleList:
    """Builds `depth` layers of a kind."""
    return nn.ModuleList(Block(kind, dim, heads) for _ in range(depth))


def pack(tokens: list[Float[Tensor, "_ _ D"]]) -> tuple[Float[Tensor, "T D"], Shapes]:
    """Packs batches of tokens into one matrix; also returns their shapes, for `unpack`."""
    shapes = [(batch.shape[0], batch.shape[1]) for batch in tokens]
    flat = [batch.flatten(0, 1) for batch in tokens]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)), shapes


def unpack(tokens: Float[Tensor, "T D"], shapes: Shapes) -> list[Float[Tensor, "_ _ D"]]:
    """Splits a packed matrix into the batches that `pack` was given."""
    parts = tokens.split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Float[Tensor, "T D"],
    shapes: Shapes,
    drops: list[tuple[Drop, Drop]],
    checkpointing: bool = False,
) -> Float[Tensor, "T D"]:
    """Runs the layers one after the other.

    Args:
        blocks: the layers.
        tokens: packed tokens.
        shapes: (B, N) of each resolution, in the order in which the tokens are packed.
        drops: stochastic depth of the two branches of each layer; see `plan_drops`.
        checkpointing: keep only the layers' inputs for the backward pass, and compute each layer
            again there.
    """
    for block, drop in zip(blocks, drops, strict=True):
        if checkpointing and torch.is_grad_enabled():
            # no layer draws random numbers: there is no state to restore
            tokens = checkpoint(
                block, tokens, shapes, drop, use_reentrant=False, preserve_rng_state=False
            )
        else:
            tokens = block(tokens, shapes, drop)
    return tokens


def block_states(
    blocks: nn.ModuleList, tokens: Float[Tensor, "B N D"], name: str = "blocks"
) -> list[LayerState]:
    """Returns the tokens of every layer, after its attention and after its token-wise operator."""
    tokens_TD, shapes = pack([tokens])
    states = []
    for i, block in enumerate(blocks):
        assert isinstance(block, Block)
        half_TD = block.attention_step(tokens_TD, shapes)
        tokens_TD = block.tokenwise_step(half_TD, shapes)
        half_BND, after_BND = (x.unflatten(0, shapes[0]) for x in (half_TD, tokens_TD))
        bases = block.attn.bases()
        states.append(LayerState(f"{name}.{i}", half_BND, after_BND, bases))
    return states


def last_projection(
    blocks: nn.ModuleList, tokens: Float[Tensor, "B N D"]
) -> tuple[Attention, Float[Tensor, "B N K"]]:
    """Returns the last layer's attention operator and its projected tokens."""
    tokens_TD, shapes = pack([tokens])
    *before, last = blocks
    for block in before:
        tokens_TD = block(tokens_TD, shapes)
    assert isinstance(last, Block)
    return last.attn, last.project(tokens_TD).unflatten(0, shapes[0])


def undecayed(blocks: nn.ModuleList, name: str = "blocks") -> set[str]:
    """Returns names of the layers' parameters that their operators exempt from weight decay."""
    return {
        f"{name}.{path}.{parameter}"
        for path, module in blocks.named_modules()
        if isinstance(module, Attention)
        for parameter in module.no_decay
    }
