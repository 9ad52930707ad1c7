"""Token statistics self-attention (ToST): tokens interact through second moments, in linear time.

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N tokens of
an image · D features · h heads · p = D / h features of a head · 1 an axis that is broadcast.
"""

import importlib.util
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.operators.attention import Attention
from vitrail.backbones.operators.tssa_cpu import (
    NORM_FLOOR,
    TOTAL_EPS,
    TokenStatistics,
    memberships,
    statistics_dtype,
    token_statistics_formula,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None


class TSSA(Attention):
    """Token statistics self-attention (ToST, Wu et al. 2025, eq. 10; book 7.5.2).

    Tokens are not compared with each other. Each belongs to the heads (subspaces) in shares Π, and
    its projection on a head shrinks along the directions in which the head's tokens have a large
    second moment: y = −w Π / (1 + d). See `tssa_cpu` for every step and for the fast forms. Time
    and memory are linear in the number of tokens. Constants, parameters and the bias of the `qkv`
    map are those of the official vision code (RobinWu218/ToST 071ea98), whose names `qkv`, `temp`,
    `to_out.0` are here `qkv`, `temp`, `proj`. The published counts (5,769,328 parameters for
    ToST-T) include that bias.

    Statistics are float32 at least, also under autocast; outputs have the dtype of the projections.
    Gradients can be taken once, not twice. Under `torch.compile` and `torch.export` the formula is
    traced as written.

    Args:
        dim: features of a token, D.
        heads: number of heads, h.
        bias: biases of both linear maps; the language code has none.
        qkv_bias: bias of the `qkv` map, if `bias` is set. Without it w = x U, as in the paper.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("temp",)

    def __init__(self, dim: int, heads: int, *, bias: bool = True, qkv_bias: bool = True):
        super().__init__(dim, heads)
        self.qkv = nn.Linear(dim, dim, bias=bias and qkv_bias)
        self.temp = nn.Parameter(torch.ones(heads, 1))
        self.proj = nn.Linear(dim, dim, bias=bias)

    def project(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T K"]:
        return self.qkv(tokens)

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        if torch.compiler.is_compiling():
            return token_statistics_formula(projected, self.temp)
        if projected.is_cuda and projected.dtype != torch.float64 and HAS_TRITON:
            # lazy import: Triton is slow to import
            from vitrail.backbones.operators.tssa_triton import FusedTokenStatistics

            return FusedTokenStatistics.apply(projected, self.temp)
        return TokenStatistics.apply(projected, self.temp)

    def output(self, mixed: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.proj(mixed)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """Returns memberships Π: each token's shares in the heads, >= 0, with sum 1 over the heads.

        There are no weights from token to token.
        """
        return memberships(projected, self.temp)

    def keys(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        return projected

    def bases(self) -> Float[Tensor, "h D p"] | None:
        return self.qkv.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)


class CausalTSSA(TSSA):
    """Causal token statistics self-attention: every sum over tokens is a running sum.

    Official language code (RobinWu218/ToST 071ea98): Π_t = softmax over heads of
    τ Σ_c (w_tc² / max(Σ_{s<=t} w_sc², 1e-12) + bias_t), d_t = Σ_{s<=t} Π_s w_s² / (Σ_{s<=t} Π_s +
    1e-8), y_t = −w_t Π_t / (1 + d_t). The floor of 1e-12 is on the squared norm; in the vision
    code it is on the norm.

    The result for a token does not depend on later tokens in a single bit. The running sums are
    float32 at least, also under autocast. `maps` are the memberships Π_t of all tokens t, each
    among the tokens up to t.

    Args:
        dim: features of a token, D.
        heads: number of heads, h.
        bias: as in `TSSA`; the published language models have none.
        qkv_bias: as in `TSSA`; the published language models have none.
        context: length of the longest sequence in tokens: `denom_bias` is learned for every
            position.

    Raises:
        ValueError: a sequence is longer than `context`.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("temp", "denom_bias")

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        qkv_bias: bool = True,
        context: int = 1024,
    ):
        super().__init__(dim, heads, bias=bias, qkv_bias=qkv_bias)
        self.context = context
        self.denom_bias = nn.Parameter(torch.zeros(heads, context, 1))

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        w_BNhp = self._heads(projected)
        squares_BNhp = w_BNhp.square()
        pi_BNh1 = self._shares(squares_BNhp).unsqueeze(-1)
        dots_BNhp = (squares_BNhp * pi_BNh1).cumsum(1) / (pi_BNh1.cumsum(1) + TOTAL_EPS)
        mixed_BNhp = w_BNhp * -pi_BNh1 / (1 + dots_BNhp)
        return mixed_BNhp.flatten(2).to(projected.dtype)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        return self._shares(self._heads(projected).square()).mT

    def _heads(self, projected_BND: Tensor) -> Tensor:
        dtype = statistics_dtype(projected_BND.dtype)
        return projected_BND.to(dtype).unflatten(-1, (self.heads, -1))

    def _shares(self, squares_BNhp: Tensor) -> Tensor:
        """Returns Π [B N h]."""
        _, n_tokens, _, p = squares_BNhp.shape
        if n_tokens > self.context:
            raise ValueError(
                f"A sequence has {n_tokens} tokens and causal TSSA was built with "
                f"context={self.context}; build it with context >= {n_tokens} or cut the sequence."
            )
        running_BNhp = squares_BNhp.cumsum(1).clamp(min=NORM_FLOOR)
        share_BNh = (squares_BNhp / running_BNhp).sum(-1)
        # p times: the bias is added to each of the p terms of the sum
        bias_Nh = p * self.denom_bias[:, :n_tokens, 0].T.to(share_BNh.dtype)
        return ((share_BNh + bias_Nh) * self.temp[:, 0].to(share_BNh.dtype)).softmax(-1)
