"""The shape of a plain vision transformer, which other libraries have too.

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
    """The sizes of a ViT, for other libraries.

    Attributes:
        width: features of a token, D.
        depth: number of layers.
        heads: heads of the attention, h.
        hidden: features within its MLP or SwiGLU.
        patch_size: side of a patch in pixels.
        img_size: side of the images in pixels.
        in_chans: channels of the images.
        registers: number of register tokens.
        swiglu: has SwiGLU instead of an MLP.
        layer_scale: has LayerScale.
        bias: linear maps have biases.
        norm_eps: epsilon of the LayerNorms.
    """

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
    norm_eps: float


def vit_shape(backbone: Backbone) -> ViTShape | None:
    """Returns the shape of a ViT; None if the backbone is something else."""
    if not isinstance(backbone, SkeletonBackbone):
        return None
    block = backbone.blocks[0]
    assert isinstance(block, Block)
    attention, tokenwise = block.attn, block.mlp
    # not subclasses: a causal form is another function
    known = type(attention) is MHSA and isinstance(tokenwise, MLP | SwiGLU)
    shell = isinstance(backbone.patch_embed, ConvPatchEmbed)
    shell = shell and block.norm1.eps == backbone.norm.eps
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
        norm_eps=block.norm1.eps,
    )
