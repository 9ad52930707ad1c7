"""Parts of XCiT (El-Nouby et al. 2021) that ToST is built of: its stem and its class attention.

Both as in ToST's code (RobinWu218/ToST 071ea98, tost_vision/tost.py), with its names.

Shape legend: B images · C channels · S, s height, width in pixels · P patch size in pixels · H×W
patches · N = 1 + H W tokens of an image, class token first · D features · h heads · p = D / h.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.xcit import conv3x3
from torch import Tensor, nn

from vitrail.backbones.layers import Kind
from vitrail.backbones.operators.attention import MHSA, attention_row
from vitrail.nn.batch_norm import convert_batch_norms


class ConvStem(nn.Module):
    """XCiT's embedding: log2 P convolutions 3×3 of stride 2 with batch norm, GELU between them.

    The last has D channels, each other half of the next. Published for P = 8 and 16. Batch norm's
    statistics are of one resolution, over all ranks.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        widths = [in_chans] + [dim >> k for k in reversed(range(halvings))]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [conv3x3(narrow, wide, stride=2), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])
        convert_batch_norms(self)

    def forward(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        return self.proj(images).permute(0, 2, 3, 1)


class ClassBlock(nn.Module):
    """A class-attention layer (CaiT, Touvron et al. 2021): the class token reads all tokens.

    In the form that ToST chooses, with its norms over all tokens. For u = LN₁ x, y = x + γ₁ a,
    where a is what the class token receives and, for a patch, u itself. Then z = LN₂ y, and the
    class token becomes z + γ₂ MLP z, a patch 2 z. No stochastic depth.
    """

    def __init__(self, kind: Kind, dim: int, heads: int):
        super().__init__()
        self.norm1 = kind.build_norm(dim)
        self.attn = MHSA(dim, heads, bias=bool(kind.defaults()["bias"]))
        self.norm2 = kind.build_norm(dim)
        self.mlp = kind.build_tokenwise(dim)
        self.ls1 = kind.build_layer_scale(dim)
        self.ls2 = kind.build_layer_scale(dim)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        normed_BND = self.norm1(tokens)
        q_Bh1p, k_BhNp, v_BhNp = self._heads(normed_BND)
        read_Bh1p = F.scaled_dot_product_attention(q_Bh1p, k_BhNp, v_BhNp)
        class_B1D = self.attn.proj(read_Bh1p.transpose(1, 2).flatten(2))
        branch_TD = torch.cat([class_B1D, normed_BND[:, 1:]], dim=1).flatten(0, 1)
        y_BND = tokens + self.ls1(branch_TD).unflatten(0, tokens.shape[:2])
        z_BND = self.norm2(y_BND)
        class_BD, patches_BND = z_BND[:, 0], z_BND[:, 1:]
        class_BD = class_BD + self.ls2(self.mlp(class_BD))
        return torch.cat([class_BD.unsqueeze(1), 2 * patches_BND], dim=1)

    def maps(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B h N"]:
        """The class token's attention weights."""
        q_Bh1p, k_BhNp, _ = self._heads(self.norm1(tokens))
        return attention_row(q_Bh1p, k_BhNp, self.attn.scale)

    def _heads(self, normed_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the class token, keys and values of all."""
        dim, qkv = normed_BND.shape[-1], self.attn.qkv
        bias_q, bias_kv = (None, None) if qkv.bias is None else qkv.bias.split([dim, 2 * dim])
        weight_q, weight_kv = qkv.weight.split([dim, 2 * dim])
        q_B1D = F.linear(normed_BND[:, :1], weight_q, bias_q)
        k_BND, v_BND = F.linear(normed_BND, weight_kv, bias_kv).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.attn.heads, -1)) for x in (q_B1D, k_BND, v_BND))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
