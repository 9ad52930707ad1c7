"""Attention operators: how the tokens of one image interact.

An operator is split where packing needs it: `project` acts on each token alone and runs once on the
tokens of all resolutions; `mix` acts on the tokens of an image, and runs once for each resolution,
followed by `output`.

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N tokens of
an image, class token first · D features · h heads · p = D / h features of a head · K features of
a projected token (MHSA: 3 D, for queries, keys and values; MSSA: D, shared by all three).
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module, ABC):
    """Abstract. A new operator defines the six parts; a causal form overrides `mix` and `maps`.

    Keyword arguments of an operator's constructor can be set by name in `create_backbone`.

    Attributes:
        no_decay: names of parameters without weight decay, besides 1-D ones.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dim: int, heads: int):
        super().__init__()
        assert dim % heads == 0
        self.heads = heads
        self.scale = (dim // heads) ** -0.5  # 1/√p

    @abstractmethod
    def project(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T K"]:
        """Projects each token; `mix` acts on these projections."""

    @abstractmethod
    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        """Mixes the tokens of each image; returns the result for each, heads concatenated."""

    @abstractmethod
    def output(self, mixed: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Maps concatenated heads back to token space."""

    @abstractmethod
    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """Returns the weight of each token for the class token, per head, >= 0.

        An operator without such weights documents its maps.
        """

    @abstractmethod
    def keys(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        """Returns the keys by which tokens are compared, heads concatenated."""

    @abstractmethod
    def bases(self) -> Float[Tensor, "h D p"] | None:
        """Returns the subspaces U_k on which the operator projects tokens; None if it has none."""

    def forward(
        self, tokens: Float[Tensor, "T D"], shapes: list[tuple[int, int]]
    ) -> Float[Tensor, "T D"]:
        """Applies the operator to packed tokens.

        Args:
            tokens: packed tokens.
            shapes: (B, N) of each resolution, in the order in which the tokens are packed.
        """
        projected = self.project(tokens).split([b * n for b, n in shapes])
        # of each part: a concatenation before `output` would be one more matrix saved for backward
        mixed = [
            self.output(self.mix(part.unflatten(0, shape)).flatten(0, 1))
            for part, shape in zip(projected, shapes, strict=True)
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class MHSA(Attention):
    """Multi-head self-attention (Vaswani et al. 2017; ViT, Dosovitskiy et al. 2021).

    softmax(Q Kᵀ/√p) V per head, then a linear map. Parameter names and the order of the
    projection's rows (queries, keys, values; then heads) are DINO's and timm's.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True):
        super().__init__(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def project(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T K"]:
        return self.qkv(tokens)

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        q_BhNp, k_BhNp, v_BhNp = self._heads(projected)
        mixed_BhNp = F.scaled_dot_product_attention(q_BhNp, k_BhNp, v_BhNp)
        return mixed_BhNp.transpose(1, 2).flatten(2)

    def output(self, mixed: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.proj(mixed)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        q_BhNp, k_BhNp, _ = self._heads(projected)
        return attention_row(q_BhNp[:, :, :1], k_BhNp, self.scale)

    def keys(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        return projected.chunk(3, dim=-1)[1]

    def bases(self) -> Float[Tensor, "h D p"] | None:
        return None

    def _heads(self, projected_BNK: Tensor) -> tuple[Tensor, ...]:
        split_BN3hp = projected_BNK.unflatten(-1, (3, self.heads, -1))
        return split_BN3hp.permute(2, 0, 3, 1, 4).unbind(0)


class MSSA(Attention):
    """Multi-head subspace self-attention (CRATE, Yu et al. 2023; book (7.3.5)).

    One projection w = x U without bias, shared by queries, keys and values: softmax(w wᵀ/√p) w per
    head. `output` is a free linear map with a bias, as in the book's U_out, b_out and the official
    code (Ma-Lab/CRATE 674408f); the paper derives the bases U themselves, times a constant.
    CRATE-α has no bias there.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True):
        super().__init__(dim, heads)
        self.qkv = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def project(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T K"]:
        return self.qkv(tokens)

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        w_BhNp = self._heads(projected)
        return F.scaled_dot_product_attention(w_BhNp, w_BhNp, w_BhNp).transpose(1, 2).flatten(2)

    def output(self, mixed: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.proj(mixed)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        w_BhNp = self._heads(projected)
        return attention_row(w_BhNp[:, :, :1], w_BhNp, self.scale)

    def keys(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        return projected

    def bases(self) -> Float[Tensor, "h D p"] | None:
        return self.qkv.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)

    def _heads(self, projected_BND: Tensor) -> Tensor:
        return projected_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attention_row(
    query: Float[Tensor, "B h 1 p"], keys: Float[Tensor, "B h N p"], scale: float
) -> Float[Tensor, "B h N"]:
    """Returns one token's row of the attention matrix; the other rows are never formed."""
    scores_BhN = (query @ keys.transpose(-2, -1)).squeeze(2) * scale
    # at least float32: the weights of one image are compared with each other
    return scores_BhN.to(torch.promote_types(scores_BhN.dtype, torch.float32)).softmax(dim=-1)


class CausalMHSA(MHSA):
    """Causal multi-head self-attention, as in GPT: `MHSA` where query t attends to keys <= t."""

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        q_BhNp, k_BhNp, v_BhNp = self._heads(projected)
        mixed_BhNp = F.scaled_dot_product_attention(q_BhNp, k_BhNp, v_BhNp, is_causal=True)
        return mixed_BhNp.transpose(1, 2).flatten(2)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """Returns the weight of each token for the last one, which attends to all, >= 0."""
        q_BhNp, k_BhNp, _ = self._heads(projected)
        return attention_row(q_BhNp[:, :, -1:], k_BhNp, self.scale)


class CausalMSSA(MSSA):
    """Causal multi-head subspace self-attention (book (7.4.7)): t attends to tokens <= t.

    With the factor 1/√p of `MSSA`, which (7.4.7) leaves out.
    """

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        w_BhNp = self._heads(projected)
        mixed_BhNp = F.scaled_dot_product_attention(w_BhNp, w_BhNp, w_BhNp, is_causal=True)
        return mixed_BhNp.transpose(1, 2).flatten(2)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """Returns the weight of each token for the last one, which attends to all, >= 0."""
        w_BhNp = self._heads(projected)
        return attention_row(w_BhNp[:, :, -1:], w_BhNp, self.scale)
