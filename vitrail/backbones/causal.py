"""Causal forms of the attention operators: a token sees itself and the tokens before it.

Only `mix` and `maps` differ: the parameters, and so the weights, are those of the operators they
come from. The mask is that of (7.4.7) in the book, key <= query; (7.4.6) prints the other triangle.

A masked weight is exactly 0, so that what a token receives, and the gradients it sends, do not
depend on the values of later tokens in a single bit. How many follow may decide how sums are
ordered, as everywhere.

Shape legend: B sequences · N tokens of a sequence, in order · D features · h heads · p = D / h
features of a head · K what the operator's projection yields for a token.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.operators.attention import MHSA, MSSA, attention_row


class CausalMHSA(MHSA):
    """Causal multi-head self-attention, as in GPT: `MHSA` where query t sees keys <= t."""

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        q_BhNp, k_BhNp, v_BhNp = self._heads(projected)
        mixed_BhNp = F.scaled_dot_product_attention(q_BhNp, k_BhNp, v_BhNp, is_causal=True)
        return mixed_BhNp.transpose(1, 2).flatten(2)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """How much each token gives to the last one, the only one that sees them all, >= 0."""
        q_BhNp, k_BhNp, _ = self._heads(projected)
        return attention_row(q_BhNp[:, :, -1:], k_BhNp, self.scale)


class CausalMSSA(MSSA):
    """Causal multi-head subspace self-attention (book (7.4.7)): `MSSA` where t sees tokens <= t.

    With the factor 1/√p of `MSSA`, which (7.4.7) leaves out.
    """

    def mix(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B N D"]:
        w_BhNp = self._heads(projected)
        mixed_BhNp = F.scaled_dot_product_attention(w_BhNp, w_BhNp, w_BhNp, is_causal=True)
        return mixed_BhNp.transpose(1, 2).flatten(2)

    def maps(self, projected: Float[Tensor, "B N K"]) -> Float[Tensor, "B h N"]:
        """How much each token gives to the last one, the only one that sees them all, >= 0."""
        w_BhNp = self._heads(projected)
        return attention_row(w_BhNp[:, :, -1:], w_BhNp, self.scale)
