"""Which of our backbones is a plain vision transformer, one that other libraries have too.

Shape legend: D features · h heads.
"""

from dataclasses import dataclass

from vitrail.backbones.contract import Backbone
from vitrail.backbones.embedding import ConvPatchEmbed
from vitrail.backbones.layers import Block, LayerScale
from vitrail.backbones.operators.attention import MHSA
from vitrail.backbones.operators.tokenwise import MLP, SwiGLU
from vitrail.backbones.skeleton import SkeletonBackbone

NORM_EPS = 1e-6  # of timm's and Hugging Face's ViTs, and of ours


@dataclass(frozen=True)
class ViTShape:
    """What other libraries must be told of a ViT. hidden: features within its MLP or SwiGLU."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch_size: int
    img_size: int
    in_chans: int
    registers: int
    swiglu: bool
    layer_scale: bool
    bias: bool


def vit_shape(backbone: Backbone) -> ViTShape | None:
    """The shape of a ViT; None if the backbone is something else."""
    if not isinstance(backbone, SkeletonBackbone):
        return None
    block = backbone.blocks[0]
    assert isinstance(block, Block)
    attention, tokenwise = block.attn, block.mlp
    # Not their subclasses: a causal form is another function.
    known = type(attention) is MHSA and isinstance(tokenwise, MLP | SwiGLU)
    shell = isinstance(backbone.patch_embed, ConvPatchEmbed) and block.norm1.eps == NORM_EPS
    if not (known and shell and block.residual):
        return None
    assert isinstance(attention, MHSA)
    assert isinstance(tokenwise, MLP | SwiGLU)
    last = tokenwise.w3 if isinstance(tokenwise, SwiGLU) else tokenwise.fc2
    return ViTShape(
        width=backbone.embed_dim,
        depth=len(backbone.blocks),
        heads=attention.heads,
        hidden=last.in_features,
        patch_size=backbone.patch_size,
        img_size=backbone.img_size,
        in_chans=backbone.in_chans,
        registers=backbone.n_prefix - 1,
        swiglu=isinstance(tokenwise, SwiGLU),
        layer_scale=isinstance(block.ls1, LayerScale),
        bias=attention.proj.bias is not None,
    )
