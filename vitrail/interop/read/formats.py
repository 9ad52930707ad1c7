"""The table of formats of other people's weights: how to recognise each, and names for its keys.

From the public code at these commits: DINO 7c446df, DINOv2 b8931f7, SimDINO 8149fc4, CRATE and
CRATE-MAE 674408f, CRATE-α edbd624, ToST 071ea98, MAE efb2a80; and timm 1.0 and transformers 5,
against whose models the tests are run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vitrail.interop.read.adapters import adapt_jax, adapt_swin, adapt_timm
from vitrail.interop.read.key_names import (
    ATTENTION_OF_JAX,
    BLOCK_OF_JAX,
    CHUNKED_RENAMES,
    CRATE_JAX_RENAMES,
    CRATE_MAE_RENAMES,
    CRATE_RENAMES,
    HF,
    HF_EMBEDDINGS,
    HF_LAYER,
    HF_SWIN_RENAMES,
    HF_VIT_RENAMES,
    HF_WINDOW,
    TIMM_RENAMES,
    TOST_RENAMES,
)
from vitrail.interop.read.weights_file import Weights


@dataclass(frozen=True)
class Format:
    """A format of weights. All patterns are regular expressions for whole keys.

    A file has this format if each pattern of `has` matches one of its keys, none of `lacks` does,
    and its weights were in one of `containers`, if these are given (see `read_checkpoint`).

    Attributes:
        name: for messages.
        family: family of the backbones that it holds; "vit" stands for "dinov2" too, which has
            LayerScales.
        has: patterns of keys that a file must have.
        lacks: patterns of keys that a file must not have.
        containers: keys under which the weights were found; () for any.
        renames: (pattern of a key, our key). A name of ours that ends in "#i/n" is the i-th of n
            parts, which are joined along their first axis.
        left_out: patterns of keys that are known and not needed.
        adapt: further changes to the renamed weights.
        heads: key and axis that show the number of heads.
        antialias: how the format's own code resamples positions, as in `resize_positions`.
        offset: its offset then, if there is no antialiasing.
        options: arguments of the backbone that its weights do not show.
        lone: not for a folder of timm's, whose config.json gives the architecture.
    """

    name: str
    family: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    adapt: Callable[[Weights], Weights] = lambda weights: weights
    heads: tuple[str, int] | None = None
    antialias: bool = True
    offset: float = 0.1
    options: dict[str, float] = field(default_factory=dict)
    lone: bool = False


HEADS = (r"heads?\..*", r"dino_head\..*", r"ibot_head\..*", r"classifier\..*", r"pre_logits\..*")
CRATE_HEAD = (r"mlp_head\.1\..*",)
OF_MASKING = (r"mask_token", r"masked_embed", r"decoder_.*")  # needed by masked prediction only
HF_LEFT_OUT = (*HEADS, HF + r"pooler\..*", HF_EMBEDDINGS + r"mask_token", r"(?:\w+\.)?decoder\..*")
SWIN_BUFFERS = (r".*\.relative_position_index", r".*\.attn_mask")

VIT = (
    r"blocks\.0\.attn\.qkv\.weight",
    r"blocks\.0\.mlp\.(?:fc1|w12)\.weight",
    r"norm\.weight",
)
CHUNKED = r"blocks\.0\.0\.attn\.qkv\.weight"
SIMDINOV2_HEAD, LAST_LAYER = r"dino_head\.mlp\.0\.weight", r"dino_head\.last_layer\..*"
TSSA = r"blocks\.0\.attn\.temp"
HF_VIT = (HF_EMBEDDINGS + r"patch_embeddings\.projection\.weight",)

# The first row that fits is used: a row may rely on those above it.
FORMATS: tuple[Format, ...] = (
    Format(
        "CRATE-α (JAX)",
        "crate_alpha",
        has=(BLOCK_OF_JAX + r"OvercompleteISTABlock_0/D",),
        renames=CRATE_JAX_RENAMES,
        left_out=(r"(?:params/)?head/.*",),
        adapt=adapt_jax,
        heads=(ATTENTION_OF_JAX + r"proj/kernel", 1),
    ),
    Format(
        "CRATE-α",
        "crate_alpha",
        has=(r"transformer\.layers\.0\.1\.fn\.D",),
        renames=CRATE_RENAMES,
        left_out=CRATE_HEAD,
        options={"final_norm_eps": 1e-5},
    ),
    Format(
        "CRATE",
        "crate",
        has=(r"transformer\.layers\.0\.1\.fn\.weight",),
        renames=CRATE_RENAMES,
        left_out=CRATE_HEAD,
    ),
    Format(
        "CRATE-MAE",
        "crate_mae",
        has=(r"blocks\.0\.layers\.0\.0\.fn\.qkv\.weight",),
        renames=CRATE_MAE_RENAMES,
        left_out=(r"pos_embed", r"mask_token", r"decoder_(?!pos_embed).*", *HEADS),
        antialias=False,
        options={"lmbda": 0.5, "final_norm_eps": 1e-6},
    ),
    Format(
        "ToST",
        "tost",
        has=(TSSA, r"cls_attn_blocks\.0\.norm1\.weight"),
        renames=TOST_RENAMES,
        left_out=HEADS,
        heads=(TSSA, 0),
    ),
    Format(
        "Swin (transformers)",
        "swin",
        has=(*HF_VIT, HF_WINDOW + r"layernorm_before\.weight"),
        renames=HF_SWIN_RENAMES,
        left_out=(*HF_LEFT_OUT, *SWIN_BUFFERS),
        adapt=adapt_swin,
    ),
    Format(
        "ViT-MAE (transformers)",
        "vit",
        has=(*HF_VIT, r"decoder\.decoder_pred\.weight"),
        renames=HF_VIT_RENAMES,
        left_out=HF_LEFT_OUT,
        antialias=False,
        offset=0.0,
    ),
    Format(
        "DINOv2 with registers (transformers)",
        "vit",
        has=(*HF_VIT, HF_EMBEDDINGS + r"register_tokens", HF_LAYER + r"layer_scale1\.lambda1"),
        renames=HF_VIT_RENAMES,
        left_out=HF_LEFT_OUT,
    ),
    Format(
        "DINOv2 (transformers)",
        "vit",
        has=(*HF_VIT, HF_LAYER + r"layer_scale1\.lambda1"),
        renames=HF_VIT_RENAMES,
        left_out=HF_LEFT_OUT,
        antialias=False,
        offset=0.0,
    ),
    Format(
        "ViT (transformers)",
        "vit",
        has=(*HF_VIT, HF_LAYER + r"layernorm_before\.weight"),
        renames=HF_VIT_RENAMES,
        left_out=HF_LEFT_OUT,
        antialias=False,
        offset=0.0,
    ),
    Format(
        "Swin (official, timm)",
        "swin",
        has=(r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",),
        left_out=(*HEADS, *SWIN_BUFFERS),
        adapt=adapt_swin,
    ),
    Format(
        "ResNet (torchvision, timm)",
        "resnet",
        has=(r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
        left_out=(*HEADS, r"fc\..*"),
    ),
    Format(
        "MAE",
        "vit",
        has=(*VIT, r"decoder_blocks\.0\.norm1\.weight"),
        left_out=(*HEADS, *OF_MASKING),
    ),
    # SimDINOv2 is trained by DINOv2's code, and its configuration resamples positions as DINOv2's
    # with registers does. Only DINOv2's head has a last layer.
    Format(
        "SimDINOv2",
        "vit",
        has=(CHUNKED, SIMDINOV2_HEAD),
        lacks=(LAST_LAYER,),
        renames=CHUNKED_RENAMES,
        left_out=(*HEADS, *OF_MASKING),
    ),
    Format(
        "SimDINOv2",
        "vit",
        has=(*VIT, SIMDINOV2_HEAD),
        lacks=(LAST_LAYER,),
        left_out=(*HEADS, *OF_MASKING),
    ),
    Format(
        "DINOv2 with registers (training code)",
        "vit",
        has=(CHUNKED, r"register_tokens"),
        renames=CHUNKED_RENAMES,
        left_out=(*HEADS, *OF_MASKING),
    ),
    Format(
        "DINOv2 (training code)",
        "vit",
        has=(CHUNKED,),
        renames=CHUNKED_RENAMES,
        left_out=(*HEADS, *OF_MASKING),
        antialias=False,
    ),
    Format(
        "DINOv2 with registers",
        "vit",
        has=(*VIT, r"register_tokens", r"mask_token"),
        left_out=(*HEADS, *OF_MASKING),
    ),
    Format(
        "DINOv2",
        "vit",
        has=(*VIT, r"mask_token", r"blocks\.0\.ls1\.gamma"),
        left_out=(*HEADS, *OF_MASKING),
        antialias=False,
    ),
    Format(
        "DINO",
        "vit",
        has=(*VIT, r"head\.last_layer\..*"),
        left_out=HEADS,
        antialias=False,
    ),
    Format(
        "SimDINO",
        "vit",
        has=(*VIT, r"head\.mlp\.0\.weight"),
        left_out=HEADS,
        antialias=False,
    ),
    # MAE's encoder alone, for fine-tuning; DeiT's files have the same keys. MAE's fine-tuned files
    # have no norm but `fc_norm`, after a mean over patches, and are refused.
    Format(
        "MAE (encoder)",
        "vit",
        has=VIT,
        lacks=(r"blocks\.0\.ls1\.gamma", r"reg_token", TSSA),
        containers=("model",),
        left_out=HEADS,
    ),
    # Without a head, LayerScale and registers, timm's keys are those of DINO's backbones.
    Format(
        "DINO (backbone)",
        "vit",
        has=VIT,
        lacks=(*HEADS, r"blocks\.0\.ls1\.gamma", r"reg(?:ister)?_tokens?", TSSA),
        left_out=OF_MASKING,
        adapt=adapt_timm,
        antialias=False,
        lone=True,
    ),
    Format(
        "ViT (timm)",
        "vit",
        has=VIT[:2],
        lacks=(TSSA,),
        renames=TIMM_RENAMES,
        left_out=(*HEADS, *OF_MASKING),
        adapt=adapt_timm,
    ),
    (OURS := Format("vitrail", "", has=(r"blocks\.0\.norm1\.weight",), left_out=HEADS)),
)
