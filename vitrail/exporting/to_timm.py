"""Converts backbones to timm's layout: a name, arguments of `timm.create_model`, and weights.

ViTs, ResNets and Swins become timm's own models, which load without vitrail. The others keep our
names, which are in timm's table after `import vitrail.interop.timm_zoo`.

Shape legend: B images · D features.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import find_row, outline
from vitrail.backbones.families import TimmResNet, TimmSwin
from vitrail.interop.timm_zoo import NAMES
from vitrail.interop.vit_shape import ViTShape, vit_shape

# timm's models from which sizes without a name in timm are built, by arguments.
ANY_VIT, ANY_SWIGLU = "vit_tiny_patch16_224", "vit_giant_patch14_dinov2"
ANY_SWIN = "swin_tiny_patch4_window7_224"

# timm's features and ours differ by rounding only: more than this, relative to the largest, is
# another function.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class TimmForm:
    """A backbone in timm's layout.

    Attributes:
        name: name of the model in timm.
        arguments: further arguments of `timm.create_model`, but num_classes and the weights.
        weights: by timm's keys.
    """

    name: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def is_ours(self) -> bool:
        """True if timm has the name from `timm_zoo` only."""
        return self.name in NAMES

    @property
    def about(self) -> dict[str, Any]:
        """The parts of timm's description with which it fits the weights to other uses."""
        described = timm.models.get_pretrained_cfg(self.name)
        assert described is not None
        cfg = described.to_dict()
        known = ("first_conv", "classifier", "fixed_input_size", "pool_size")
        return {key: cfg[key] for key in known if key in cfg}

    def call(self, **more: Any) -> str:
        """Returns the call that builds the model, as Python."""
        arguments = {"num_classes": 0, **self.arguments, **more}
        listed = "".join(f", {key}={value!r}" for key, value in arguments.items())
        return f"timm.create_model({self.name!r}{listed})"

    def build(self) -> nn.Module:
        """Builds timm's model with these weights, in evaluation mode."""
        model = timm.create_model(self.name, num_classes=0, **self.arguments)
        model.load_state_dict(self.weights)
        return model.eval()


def timm_form(backbone: Backbone) -> TimmForm:
    """Converts a backbone, in evaluation mode, to timm's layout.

    The model is built, and its features of random images compared with the backbone's.

    Raises:
        ValueError: timm has no such architecture, or computes something else at this size.
    """
    form = _vit(backbone) or _of_timm(backbone) or _ours(backbone)
    _check(backbone, form)
    return form


def timm_arguments(shape: ViTShape) -> dict[str, Any]:
    """Returns a ViT's shape as arguments of timm's VisionTransformer."""
    # timm's SwiGLU counts the gates too, and rounds the product down.
    hidden = 2 * shape.hidden + 0.5 if shape.swiglu else shape.hidden
    return {
        "img_size": shape.img_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.in_chans,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": hidden / shape.width,
        "qkv_bias": shape.bias,
        "proj_bias": shape.bias,
        "init_values": 1e-5 if shape.layer_scale else None,
        "reg_tokens": shape.registers,
        "no_embed_class": shape.registers > 0,
    }


def timm_vit_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ViT's weights to timm's keys.

    With registers, timm's class token has no position: ours is added to the token.
    """
    names = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    if "register_tokens" in renamed:
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:].clone()
    return renamed


def _vit(backbone: Backbone) -> TimmForm | None:
    shape = vit_shape(backbone)
    if shape is None:
        return None
    name = backbone.config["name"]
    if not _timm_has(name):
        name = ANY_SWIGLU if shape.swiglu else ANY_VIT
    named = vit_shape(outline(name))
    assert named is not None
    usual = timm_arguments(named)
    differing = {k: v for k, v in timm_arguments(shape).items() if v != usual[k]}
    return TimmForm(name, differing, timm_vit_weights(backbone.state_dict()))


def _of_timm(backbone: Backbone) -> TimmForm | None:
    """Converts a ResNet or a Swin, whose modules are timm's already; None for others."""
    config = dict(backbone.config)
    name = config.pop("name")
    row = find_row(name)
    usual: dict[str, Any] = {"in_chans": 3, "img_size": row.img_size, **row.options()}
    if isinstance(row, TimmResNet):
        if row.small:
            raise ValueError(
                f"{name} has a stem for small images, which timm's ResNets do not; export it with "
                "--format onnx or --format safetensors"
            )
        name = row.timm_name
        del config["img_size"]  # a ResNet is the same for images of every size
    elif not isinstance(row, TimmSwin):
        return None
    elif not _timm_has(name):
        name = ANY_SWIN
        sizes = {"embed_dim": row.width, "depths": row.depths, "num_heads": row.heads}
        config |= sizes
        usual = {"in_chans": 3}
    differing = {key: value for key, value in config.items() if value != usual.get(key)}
    return TimmForm(name, differing, backbone.state_dict())


def _ours(backbone: Backbone) -> TimmForm:
    config = dict(backbone.config)
    name = config.pop("name")
    if name not in NAMES:
        raise ValueError(
            f"{name} has no counterpart in timm; export it with --format onnx or "
            "--format safetensors"
        )
    row = find_row(name)
    usual = {"img_size": row.img_size, "in_chans": 3, **row.options()}
    differing = {k: v for k, v in config.items() if v != usual[k]}
    return TimmForm(name, differing, backbone.state_dict())


def _timm_has(name: str) -> bool:
    """Checks that timm itself has the name."""
    return timm.is_model(name) and name not in NAMES


def _check(backbone: Backbone, form: TimmForm) -> None:
    size = backbone.img_size
    generator = torch.Generator().manual_seed(0)
    images_BCSS = torch.randn(2, backbone.in_chans, size, size, generator=generator)
    ours_BD = backbone(images_BCSS).pooled
    try:
        model = form.build()
    except RuntimeError as error:  # of load_state_dict
        raise ValueError(f"{_refusal(backbone)}: its weights have other shapes") from error
    theirs_BD = model(images_BCSS)
    off = float((ours_BD - theirs_BD).abs().max())
    if not off <= TOLERANCE * max(1.0, float(ours_BD.abs().max())):
        raise ValueError(f"{_refusal(backbone)}: its features differ from ours by up to {off:.1e}")


def _refusal(backbone: Backbone) -> str:
    size = backbone.img_size
    return (
        f"timm's {backbone.config['name']} is another function at {size} × {size} pixels; give "
        f"another --img-size, or use --format onnx or --format safetensors"
    )
