"""ToST as published for vision (Wu et al. 2025): statistics attention in the shell of XCiT.

After the official code (RobinWu218/ToST 071ea98, tost_vision/tost.py), whose shell is XCiT's
(El-Nouby et al. 2021): a convolutional stem, Fourier positions, L layers of (TSSA, MLP) over the
patches alone, then two class-attention layers in which a class token attends to the patches.

Shape legend: B images · C channels · S, s height, width in pixels · P patch size in pixels · H×W
patches · N = 1 + H W tokens of an image, class token first · D features · h heads · p = D / h.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.xcit import PositionalEncodingFourier
from torch import Tensor, nn

from vitrail.backbones.contract import Features, LayerState, TokenBackbone, check_sizes
from vitrail.backbones.embedding import ConvStem, check_divides, check_images
from vitrail.backbones.families import ToSTModel
from vitrail.backbones.layers import (
    Kind,
    block_states,
    last_projection,
    pack,
    run_blocks,
    stack,
    truncated_normal_linear,
    undecayed,
    unpack,
)
from vitrail.backbones.operators.attention import MHSA, attention_row
from vitrail.backbones.operators.tokenwise import MLP
from vitrail.backbones.operators.tssa import TSSA
from vitrail.backbones.stochastic_depth import plan_drops
from vitrail.nn.random import Draws

CLASS_LAYERS = 2


class ClassBlock(nn.Module):
    """A class-attention layer (CaiT, Touvron et al. 2021): the class token attends to all tokens.

    In ToST's form, with norms over all tokens. For u = LN₁ x, y = x + γ₁ a, where a is the
    attention's output for the class token and u itself for a patch. Then z = LN₂ y, and the class
    token becomes z + γ₂ MLP z, a patch 2 z. No stochastic depth.
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
        """Returns the class token's attention weights."""
        q_Bh1p, k_BhNp, _ = self._heads(self.norm1(tokens))
        return attention_row(q_Bh1p, k_BhNp, self.attn.scale)

    def _heads(self, normed_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries of the class token, and keys and values of all tokens."""
        dim, qkv = normed_BND.shape[-1], self.attn.qkv
        bias_q, bias_kv = (None, None) if qkv.bias is None else qkv.bias.split([dim, 2 * dim])
        weight_q, weight_kv = qkv.weight.split([dim, 2 * dim])
        q_B1D = F.linear(normed_BND[:, :1], weight_q, bias_q)
        k_BND, v_BND = F.linear(normed_BND, weight_kv, bias_kv).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.attn.heads, -1)) for x in (q_B1D, k_BND, v_BND))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class ToST(TokenBackbone):
    """The published vision ToST. `pooled` is the class token and `patches` are the patch tokens.

    Both are after the class-attention layers and the final LayerNorm `norm`. The official code
    computes the patch tokens and drops them. `embed` puts the class token before the patches, but
    the L layers of `blocks` get the patches only: `layer_states` has their tokens, without the
    class token.

    Fourier positions are a function of a patch's place between the image's edges: images of any
    size that the patch size divides are accepted. In training mode, features depend on the whole
    batch, through the stem's batch norm, and every pass moves its running statistics.

    Stochastic depth works on the branches of `blocks`. Its rate grows linearly; in the official
    code it is the same in all layers. The official code decays `temp`, though it lists it as
    exempt: its optimizer reads the list of the model only, not those of its layers. Here it is
    exempt, as is the class token.

    Args:
        kind: of `blocks`. The class-attention layers share its token-wise operator and LayerScale.
        width: features of a token, D.
        depth: number of layers in `blocks`, L.
        heads: heads of the attention, h.
        patch_size: side of a patch in pixels, P, a power of two.
        img_size: side of the images in pixels; the weights do not depend on it.
        in_chans: channels of the images, C.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        config: arguments with which `create_backbone` builds the same architecture again.
    """

    batch_coupled: ClassVar[bool] = True

    def __init__(
        self,
        kind: Kind,
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
        self.n_prefix = 1
        self.checkpointing = False  # see `run_blocks`
        self.patch_embed = ConvStem(patch_size, in_chans, width)
        self.pos_embeder = PositionalEncodingFourier(dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = stack(kind, width, heads, depth)
        self.cls_attn_blocks = nn.ModuleList(
            ClassBlock(kind, width, heads) for _ in range(CLASS_LAYERS)
        )
        self.norm = kind.build_norm(width)
        self._init_weights()

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        encoded = self.encode([self.embed(batch) for batch in images], draws)
        return [
            Features(
                pooled=tokens_BND[:, 0], patches=tokens_BND[:, 1:].unflatten(1, self._grid(batch))
            )
            for tokens_BND, batch in zip(encoded, images, strict=True)
        ]

    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        patches_BND = self._embed_patches(images)
        return torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches_BND], dim=1)

    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        tokens_TD, shapes = pack([batch[:, 1:] for batch in tokens])
        depth, skip = len(self.blocks), not self.compiled
        drops = plan_drops(draws, shapes, self.drop_path, depth, tokens_TD, skip)
        tokens_TD = run_blocks(self.blocks, tokens_TD, shapes, drops, self.checkpointing)
        return [
            self.norm(self._read(self.cls_attn_blocks, batch[:, :1], patches))
            for batch, patches in zip(tokens, unpack(tokens_TD, shapes), strict=True)
        ]

    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """Returns the class token's attention weights in the last class-attention layer, per head.

        With its weight for itself they sum to 1.
        """
        tokens_BND = self.embed(images)
        patches_TD, shapes = pack([tokens_BND[:, 1:]])
        for block in self.blocks:
            patches_TD = block(patches_TD, shapes)
        *before, last = self.cls_attn_blocks
        read_BND = self._read(before, tokens_BND[:, :1], patches_TD.unflatten(0, shapes[0]))
        assert isinstance(last, ClassBlock)
        return last.maps(read_BND)[:, :, 1:].unflatten(2, self._grid(images))

    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """Returns the keys of the patches in the last layer of `blocks`, heads concatenated."""
        attention, projected_BNK = last_projection(self.blocks, self._embed_patches(images))
        return attention.keys(projected_BNK).unflatten(1, self._grid(images))

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """Returns the patches after every layer of `blocks`, without the class-attention layers."""
        return block_states(self.blocks, self._embed_patches(images))

    def no_weight_decay(self) -> set[str]:
        return undecayed(self.blocks) | {"cls_token"}

    def _embed_patches(self, images: Tensor) -> Tensor:
        check_images(images, self.patch_size, self.in_chans)
        patches_BHWD = self.patch_embed(images)
        positions_1DHW = self.pos_embeder(1, *patches_BHWD.shape[1:3])
        return (patches_BHWD + positions_1DHW.permute(0, 2, 3, 1)).flatten(1, 2)

    @staticmethod
    def _read(
        blocks: Sequence[nn.Module] | nn.ModuleList, class_B1D: Tensor, patches_BND: Tensor
    ) -> Tensor:
        tokens_BND = torch.cat([class_B1D, patches_BND], dim=1)
        for block in blocks:
            tokens_BND = block(tokens_BND)
        return tokens_BND

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _init_weights(self) -> None:
        """Draws the official initial weights.

        Linear maps and the class token are truncated normal with deviation 0.02, biases are zero,
        convolutions keep torch's default.
        """
        truncated_normal_linear(self, self.embed_dim)
        nn.init.trunc_normal_(self.cls_token, std=0.02)


KIND = Kind(TSSA, MLP, layer_scale=1.0)
SIZES = ("width", "depth", "heads", "patch_size")


def options(row: ToSTModel) -> dict[str, Any]:
    """Returns the options of a row, with the row's own values."""
    sizes = {name: getattr(row, name) for name in SIZES}
    return {**sizes, "layer_scale": row.layer_scale, **KIND.defaults()}


def build(
    row: ToSTModel,
    name: str,
    *,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    overrides: dict[str, Any],
) -> ToST:
    """Builds the backbone of a row. See `BackboneRow.build`."""
    chosen = options(row) | overrides
    size = row.img_size if img_size is None else img_size
    _check(name, size, chosen)
    arguments = {key: chosen[key] for key in KIND.defaults()}
    config = {"name": name, "img_size": size, "in_chans": in_chans}
    return ToST(
        replace(KIND, layer_scale=chosen["layer_scale"], arguments=arguments),
        **{key: chosen[key] for key in SIZES},
        img_size=size,
        in_chans=in_chans,
        drop_path=drop_path,
        config={**config, "patch_size": chosen["patch_size"], **overrides},
    )


def _check(name: str, img_size: int, chosen: dict[str, Any]) -> None:
    check_sizes(name, {key: chosen[key] for key in SIZES})
    width, patch_size = chosen["width"], chosen["patch_size"]
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(
            f"backbone {name}: patch_size is {patch_size}; its stem halves the image, so that it "
            f"must be a power of two from 2 on"
        )
    if width % (patch_size // 2):
        raise ValueError(
            f"backbone {name}: width {width} is not a multiple of {patch_size // 2}, half of "
            f"patch_size, as the channels of its stem need"
        )
    check_divides(img_size, patch_size, f"img_size of backbone {name},")
