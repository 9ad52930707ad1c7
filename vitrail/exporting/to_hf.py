"""Converts ViTs to the layout of Hugging Face `transformers`: ViT, DINOv2, with registers too.

The keys are those of transformers' files in versions 4 and 5 (4's attribute names). transformers
itself is not needed.

Shape legend: D features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.interop.vit_shape import ViTShape, vit_shape


@dataclass(frozen=True)
class HFForm:
    """A backbone in transformers' layout.

    Attributes:
        model: name of the class of transformers that loads it.
        config: content of config.json.
        weights: by transformers' keys.
    """

    model: str
    config: dict[str, Any]
    weights: dict[str, Tensor]


EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
VIT_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
DINOV2_LAYER = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
    "ls2.gamma": "layer_scale2.lambda1",
}


def hf_form(backbone: Backbone) -> HFForm:
    """Converts a ViT to transformers' layout.

    Plain ones become ViTModel. Those with LayerScale, registers or SwiGLU become Dinov2Model or
    Dinov2WithRegistersModel; for a backbone without LayerScale, theirs is 1.

    Raises:
        ValueError: an architecture that transformers does not have.
    """
    shape = vit_shape(backbone)
    if shape is None:
        raise ValueError(
            f"{backbone.config['name']} is no plain ViT: transformers has no such architecture; "
            "export it with --format timm, --format onnx or --format safetensors"
        )
    is_dinov2 = shape.layer_scale or shape.registers > 0 or shape.swiglu
    config = _common(shape) | (_dinov2(shape) if is_dinov2 else _vit(shape))
    layer = DINOV2_LAYER if is_dinov2 else VIT_LAYER
    weights = _renamed(backbone.state_dict(), layer)
    if not shape.bias:
        weights |= _zero_biases(weights)
    if is_dinov2:
        # needed by transformers to load; only masked images use it
        weights["embeddings.mask_token"] = torch.zeros(1, shape.width)
    if is_dinov2 and not shape.layer_scale:
        for i in range(shape.depth):
            for scale in ("layer_scale1", "layer_scale2"):
                weights[f"encoder.layer.{i}.{scale}.lambda1"] = torch.ones(shape.width)
    return HFForm(config["architectures"][0], config, weights)


def _common(shape: ViTShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": shape.norm_eps,
        "image_size": shape.img_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.in_chans,
        "qkv_bias": shape.bias,
    }


def _vit(shape: ViTShape) -> dict[str, Any]:
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "intermediate_size": shape.hidden,
    }


def _dinov2(shape: ViTShape) -> dict[str, Any]:
    with_registers = {
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "num_register_tokens": shape.registers,
    }
    without = {"architectures": ["Dinov2Model"], "model_type": "dinov2"}
    return {
        **(with_registers if shape.registers else without),
        # A SwiGLU's hidden features are counted as those of the MLP that it stands for.
        "mlp_ratio": 4 if shape.swiglu else shape.hidden // shape.width,
        "use_swiglu_ffn": shape.swiglu,
        "layerscale_value": 1.0,
    }


def _renamed(weights: dict[str, Tensor], layer: dict[str, str]) -> dict[str, Tensor]:
    """Renames weights to transformers' keys, with separate queries, keys and values."""
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not key.startswith("blocks."):
            renamed[_replaced(key, EMBEDDINGS)] = value
            continue
        _, i, name = key.split(".", 2)
        prefix = f"encoder.layer.{i}."
        if name.startswith("attn.qkv."):
            for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                kind = name.removeprefix("attn.qkv.")
                renamed[f"{prefix}attention.attention.{which}.{kind}"] = part.clone()
        else:
            renamed[prefix + _replaced(name, layer)] = value
    return renamed


def _replaced(key: str, names: dict[str, str]) -> str:
    ours = next(name for name in names if key == name or key.startswith(name + "."))
    return names[ours] + key.removeprefix(ours)


def _zero_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns zero biases for linear maps that always have one in transformers."""
    return {
        key.removesuffix("weight") + "bias": torch.zeros(len(value))
        for key, value in weights.items()
        if key.endswith((".dense.weight", ".fc1.weight", ".fc2.weight"))
        or key.endswith((".weights_in.weight", ".weights_out.weight"))
    }
