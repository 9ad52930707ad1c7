"""Reads what a hub folder's config.json adds to its weights: heads, image size, architecture.

timm's config.json names an architecture and the arguments that differ. timm's model is then built
on the meta device, without memory for its weights, and its modules are compared with ours.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vitrail.backbones.registry import BACKBONES
from vitrail.interop.read.weights_file import Checkpoint
from vitrail.interop.vit_shape import NORM_EPS

# timm's arguments for training, or for images of other sizes
HARMLESS = {
    *("num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "drop_block_rate", "weight_init", "fix_init"),
    *("zero_init_last", "dynamic_img_size", "strict_img_size"),
}
UNDERSTOOD = {
    *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "depths", "num_heads"),
    *("mlp_ratio", "qkv_bias", "proj_bias", "init_values", "no_embed_class", "reg_tokens"),
    *("window_size", "global_pool"),
}

COMMON = {"Sequential", "ModuleList", "Identity", "Linear", "Conv2d", "Dropout", "DropPath"}
OF_VIT = {
    *("VisionTransformer", "PatchEmbed", "Block", "Attention", "LayerScale", "LayerNorm"),
    *("Mlp", "GELU", "GluMlp", "SiLU"),
}
OF_SWIN = {
    *("SwinTransformer", "SwinTransformerStage", "SwinTransformerBlock", "PatchMerging"),
    *("PatchEmbed", "WindowAttention", "LayerNorm", "Mlp", "GELU", "Softmax"),
    *("ClassifierHead", "SelectAdaptivePool2d", "FastAdaptiveAvgPool", "AdaptiveAvgPool2d"),
}
OF_RESNET = {
    *("ResNet", "BasicBlock", "Bottleneck", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten"),
    *("SelectAdaptivePool2d", "FastAdaptiveAvgPool", "AdaptiveAvgPool2d"),
}


@dataclass(frozen=True)
class OfTimm:
    """A class of timm's that vitrail has too.

    Attributes:
        parts: names of the classes of its modules.
        norm_eps: epsilon of its norms.
        pools: values of timm's `global_pool` for which its features are ours.
    """

    parts: set[str]
    norm_eps: float
    pools: tuple[str, ...]


CLASSES = {
    "VisionTransformer": OfTimm(OF_VIT, NORM_EPS, ("token", "")),
    "SwinTransformer": OfTimm(OF_SWIN, 1e-5, ("avg", "")),
    "ResNet": OfTimm(OF_RESNET, 1e-5, ("avg", "")),
}


# of transformers' models whose config.json does not say it
HF_NORM_EPS = {"vit": 1e-12, "vit_mae": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}


@dataclass(frozen=True)
class Described:
    """An architecture, as far as config.json describes it.

    Attributes:
        heads: heads of the layers, or of each of a Swin's stages; None if not given.
        img_size: side in pixels of the images of its training; None if not given.
        backbone: name of a row of BACKBONES; None for other architectures.
        kwargs: arguments of `create_backbone` for that row.
        norm_eps: epsilon of the LayerNorms; None for the row's own.
    """

    heads: int | tuple[int, ...] | None = None
    img_size: int | None = None
    backbone: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None


def read_description(checkpoint: Checkpoint) -> Described:
    """Reads a hub folder's config.json; a lone file has none, and all fields are None.

    Raises:
        ValueError: it describes another function than ours; the difference is listed by name.
    """
    config = checkpoint.config
    if "architecture" in config:
        return _by_timm(checkpoint)
    if config.get("hidden_act", "gelu") != "gelu":
        raise _refusal(checkpoint, f"hidden_act is {config['hidden_act']!r}, not 'gelu'")
    heads = config.get("num_attention_heads", config.get("num_heads"))
    return Described(
        tuple(heads) if isinstance(heads, list) else heads,
        config.get("image_size"),
        norm_eps=_norm_eps(checkpoint),
    )


def _norm_eps(checkpoint: Checkpoint) -> float | None:
    """Returns the epsilon of transformers' LayerNorms; None if the folder is not of a model's."""
    model = checkpoint.config.get("model_type")
    eps = checkpoint.config.get("layer_norm_eps", HF_NORM_EPS.get(str(model)))
    if eps is None:
        return None
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise _refusal(checkpoint, f"layer_norm_eps is {eps!r}, not a small number above 0")
    if model == "swin" and eps != CLASSES["SwinTransformer"].norm_eps:
        raise _refusal(checkpoint, f"layer_norm_eps is {eps}, and that of Swins here is 1e-5")
    return float(eps)


def _by_timm(checkpoint: Checkpoint) -> Described:
    import timm  # lazy import: timm takes seconds

    name = str(checkpoint.config["architecture"]).partition(".")[0]
    arguments = checkpoint.config.get("model_args") or {}
    if name in BACKBONES and not _is_timms(name):
        return _of_our_table(checkpoint, name, arguments)
    if not _is_timms(name):
        raise _refusal(
            checkpoint, f"the architecture is {name!r}, which timm {timm.__version__} does not have"
        )
    model = _built(checkpoint, name, arguments)
    _check(checkpoint, model)
    if type(model).__name__ == "ResNet":
        size = checkpoint.config.get("pretrained_cfg", {}).get("input_size")
        return Described(img_size=size[-1] if size else None)
    if type(model).__name__ == "VisionTransformer":
        return Described(heads=model.blocks[0].attn.num_heads)
    _check_windows(checkpoint, model)
    heads = tuple(stage.blocks[0].attn.num_heads for stage in model.layers)
    return Described(heads=heads, img_size=model.patch_embed.img_size[0])


def _is_timms(name: str) -> bool:
    """Checks that timm itself has the name; `timm_zoo` adds ours."""
    import timm  # lazy import: timm takes seconds

    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__.startswith("timm.")


def _of_our_table(checkpoint: Checkpoint, name: str, arguments: dict[str, Any]) -> Described:
    known = {"img_size", "in_chans", *BACKBONES[name].options()}
    pool = checkpoint.config.get("global_pool", arguments.get("global_pool", "token"))
    unknown = arguments.keys() - known - HARMLESS - {"global_pool"}
    if unknown:
        raise _refusal(checkpoint, f"{name} has {_listed(arguments, unknown)}, not known here")
    if pool not in ("token", ""):
        raise _refusal(checkpoint, f"global_pool is {pool!r}, and ours is the class token")
    return Described(backbone=name, kwargs={k: v for k, v in arguments.items() if k in known})


def _built(checkpoint: Checkpoint, name: str, arguments: dict[str, Any]) -> Any:
    import timm  # lazy import: timm takes seconds

    unknown = arguments.keys() - UNDERSTOOD - HARMLESS
    if unknown:
        raise _refusal(checkpoint, f"{name} has {_listed(arguments, unknown)}, not understood here")
    given = {key: value for key, value in arguments.items() if key in UNDERSTOOD}
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **given)
    except Exception as error:  # timm checks little: wrong arguments raise anything
        raise _refusal(checkpoint, f"timm cannot build {name} with {given} ({error})") from error


def _check(checkpoint: Checkpoint, model: Any) -> None:
    """Refuses a model of other modules than ours, though its keys may be the same."""
    kind = type(model).__name__
    if kind not in CLASSES:
        raise _refusal(checkpoint, f"it is a {kind} of timm's, which vitrail does not have")
    expected = CLASSES[kind]
    strange = {type(m).__name__ for m in model.modules()} - expected.parts - COMMON
    pool = checkpoint.config.get("global_pool", getattr(model, "global_pool", "avg"))
    if not isinstance(pool, str):  # timm's ResNets and Swins have a module there
        pool = "avg"
    if strange:
        raise _refusal(checkpoint, f"it has {', '.join(sorted(strange))}, and our {kind} has not")
    if pool not in expected.pools:
        raise _refusal(checkpoint, f"global_pool is {pool!r}, and ours is {expected.pools[0]!r}")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d) and module.eps != expected.norm_eps:
            raise _refusal(checkpoint, f"norm_layer has eps {module.eps}, not {expected.norm_eps}")
        if isinstance(module, nn.GELU) and module.approximate != "none":
            raise _refusal(checkpoint, f"act_layer is GELU by {module.approximate}")
        _check_gate(checkpoint, module)


def _check_gate(checkpoint: Checkpoint, module: Any) -> None:
    """Checks that MLPs have GELU, and that gated ones are SwiGLU, whose first half is the gate."""
    act = type(getattr(module, "act", None)).__name__
    kind = type(module).__name__
    if (kind == "Mlp" and act != "GELU") or (kind == "GluMlp" and act != "SiLU"):
        raise _refusal(checkpoint, f"act_layer of its {kind} is {act}")
    if kind == "GluMlp" and module.gate_last:
        raise _refusal(checkpoint, "its gated MLP has the gate last, and SwiGLU has it first")


def _check_windows(checkpoint: Checkpoint, model: Any) -> None:
    """Checks that maps are whole windows: timm pads maps after their shift, vitrail before it."""
    size, patch = model.patch_embed.img_size, model.patch_embed.patch_size[0]
    if size[0] != size[1]:
        raise _refusal(checkpoint, f"img_size is {size[0]} × {size[1]}; ours are squares")
    for i, stage in enumerate(model.layers):
        side = math.ceil(size[0] / (patch * 2**i))
        window, shifts = stage.blocks[0].window_size, [b.shift_size for b in stage.blocks]
        if any(side % w for w in window) and any(any(shift) for shift in shifts):
            raise _refusal(
                checkpoint,
                f"at {size[0]} pixels, windows of {window[0]} do not divide a map of {side} cells, "
                "which timm pads in another order",
            )


def _listed(arguments: dict[str, Any], names: set[str]) -> str:
    return ", ".join(f"{name}={arguments[name]!r}" for name in sorted(names))


def _refusal(checkpoint: Checkpoint, problem: str) -> ValueError:
    return ValueError(
        f"{checkpoint.path}: by its config.json, {problem}. The backbones here would compute "
        "something else"
    )
