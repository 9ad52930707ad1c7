"""config.json is followed: our exports are read back unchanged, timm's as timm's."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.backbones.create import create_backbone
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.exporting.export import Format, export
from vitrail.interop.read.load import load_official, read_official

VIT = "vit_nano_patch4_28"
DINOV2 = {"depth": 2, "width": 64, "img_size": 28}
VITS: list[tuple[str, dict[str, Any]]] = [
    (VIT, {}),
    (VIT, {"heads": 4}),
    (VIT, {"bias": False}),
    (VIT, {"in_chans": 1, "ratio": 2}),
    (VIT, {"registers": 2}),
    (VIT, {"registers": 2, "layer_scale": 1e-5, "antialias": False}),
    (VIT, {"img_size": 20, "registers": 9}),  # 25 patches: less the registers, a square again
    ("vit_small_patch14_dinov2", {**DINOV2, "heads": 4}),
    ("vit_giant_patch14_reg4_dinov2", {**DINOV2, "heads": 2}),
    ("vit_giant_patch14_reg4_dinov2", {**DINOV2, "heads": 2, "bias": False}),
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    (VIT, {"residual": False}),
    (VIT, {"residual": False, "img_size": 20, "registers": 9}),
    ("crate_nano_patch4_28", {}),
    ("crate_nano_patch4_28", {"eta": 0.2, "registers": 2, "residual": True}),
    ("crate_mae_nano_patch4_28", {"heads": 4}),
    ("crate_alpha_nano_patch4_28", {"decoupled": False}),
    ("tost_vit_nano_patch4_28", {"registers": 2}),
    ("aot_mssa_nano_patch4_28", {}),
    ("aot_mhsa_nano_patch4_28", {"heads": 4}),
    ("tost_nano_patch4_28", {"heads": 4}),
    ("swin_nano_patch2_28", {}),
    ("swin_nano_patch2_28", {"img_size": 56}),
    ("resnet18", {"img_size": 64}),
]
CASES = [("timm", *case) for case in VITS + OTHERS] + [("hf", *case) for case in VITS]


def exported(folder: Path, format: Format, name: str, overrides: dict) -> tuple[Encoder, Path]:
    """A folder in other people's layout, and the encoder that it was written from."""
    backbone = create_backbone(name, **overrides)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    side, channels = backbone.img_size, backbone.in_chans
    preprocess = Preprocess(side, side + 5, (0.4,) * channels, (0.2,) * channels)
    info = {"seed": 3, "data": "digits", "step": 7}
    encoder = Encoder(backbone.eval(), preprocess, info)
    encoder.save(folder)
    export(folder, format)
    return encoder, folder / "export" / format


def pooled(backbone: Any, side: int) -> Tensor:
    """Compares images of the size that the backbone is built for, and of twice the size."""
    generator = torch.Generator().manual_seed(1)
    backbone.eval()
    with torch.no_grad():
        features = [
            backbone(torch.randn(2, backbone.in_chans, s, s, generator=generator)).pooled
            for s in (side, 2 * side)
        ]
    return torch.cat(features)


@pytest.mark.parametrize(("format", "name", "overrides"), CASES)
def test_our_exports_come_back(
    tmp_path: Path, format: Format, name: str, overrides: dict[str, Any]
) -> None:
    encoder, folder = exported(tmp_path, format, name, overrides)
    again = Encoder.load(folder)
    assert again.backbone.config == encoder.backbone.config
    assert again.preprocess == encoder.preprocess
    assert {key: again.info[key] for key in encoder.info} == encoder.info
    side = encoder.backbone.img_size
    features = pooled(again.backbone, side)
    torch.testing.assert_close(features, pooled(encoder.backbone, side), rtol=1e-6, atol=1e-6)


def edited(folder: Path, change: dict[str, Any]) -> Path:
    """A folder as timm would have written it, without our description."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("vitrail", None)
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


@pytest.mark.parametrize(("name", "overrides"), [*VITS, *OTHERS[2:]])
def test_timms_arguments_are_honoured(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    """Its own description is enough for the function at the size it was trained at."""
    encoder, folder = exported(tmp_path, "timm", name, overrides)
    again = Encoder.load(edited(folder, {}))
    side = encoder.backbone.img_size
    assert (again.preprocess.size, again.preprocess.resize) == (side, side + 5)
    features, expected = pooled(again.backbone, side)[:2], pooled(encoder.backbone, side)[:2]
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    # transformers resamples plain ViTs' positions without antialiasing
    plain = format == "hf" or name.startswith("crate_mae")
    assert getattr(again.backbone, "antialias", True) or plain


def timm_folder(folder: Path, architecture: str, **arguments: Any) -> tuple[nn.Module, Path]:
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": architecture, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2}
TIMMS: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of the architecture": ("vit_giant_patch14_224", {**SMALL, "mlp_ratio": 4.0}),
    "heads of its arguments": ("vit_tiny_patch16_224", {**SMALL, "num_heads": 8}),
    "no biases of qkv": ("vit_tiny_patch16_224", {**SMALL, "num_heads": 4, "qkv_bias": False}),
    "biases of qkv only": ("vit_tiny_patch16_224", {**SMALL, "num_heads": 4, "proj_bias": False}),
    "a ResNet": ("resnet18", {}),
}


@pytest.mark.parametrize("case", TIMMS)
def test_timms_folders(tmp_path: Path, case: str) -> None:
    name, arguments = TIMMS[case]
    model, folder = timm_folder(tmp_path, name, **arguments)
    images = torch.randn(2, 3, 32, 32)
    backbone = read_official(folder).build().eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).pooled, model(images), rtol=1e-4, atol=1e-5)


OTHER_FUNCTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an argument": (VIT, {"model_args": {"act_layer": "relu"}}, "has act_layer='relu'"),
    "a norm": (VIT, {"model_args": {"norm_layer": "rmsnorm"}}, "has norm_layer='rmsnorm'"),
    "an average": (VIT, {"global_pool": "avg"}, "global_pool is 'avg', and ours is 'token'"),
    "its argument": (VIT, {"model_args": {"global_pool": "avg"}}, "global_pool is 'avg'"),
    "another architecture": (VIT, {"architecture": "vit_of_mine"}, "'vit_of_mine', which timm"),
    "another class": (VIT, {"architecture": "eva02_tiny_patch14_224"}, "it is a Eva of timm's"),
    "a quick GELU": (
        VIT,
        {"architecture": "vit_base_patch32_clip_quickgelu_224", "model_args": {}},
        "it has QuickGELU",
    ),
    "sizes that do not fit": (VIT, {"model_args": {"depth": "x"}}, "timm cannot build"),
    "a blurred ResNet": ("resnet18", {"architecture": "resnetblur18"}, "it has .*BlurPool2d"),
    "a Swin's padding": (
        "swin_nano_patch2_28",
        {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"img_size": 256}},
        "windows of 7 do not divide a map of 64 cells",
    ),
    "an option of ours": (
        "crate_nano_patch4_28",
        {"model_args": {"act_layer": "relu"}},
        "crate_nano_patch4_28 has act_layer='relu', not known here",
    ),
    "no description": (VIT, {"vitrail": {"backbone": VIT}}, "does not describe an encoder"),
    "an unknown backbone": (
        VIT,
        {"vitrail": {"backbone": "vit_nana", "kwargs": {}, "preprocess": {}}},
        "unknown backbone 'vit_nana'",
    ),
}


@pytest.mark.parametrize("case", OTHER_FUNCTIONS)
def test_other_functions_are_refused_by_name(tmp_path: Path, case: str) -> None:
    name, change, message = OTHER_FUNCTIONS[case]
    _, folder = exported(tmp_path, "timm", name, {})
    with pytest.raises(ValueError, match=message):
        Encoder.load(edited(folder, change))


def test_transformers_without_biases(tmp_path: Path) -> None:
    """transformers always has those of other maps; ours of zeros are read as none."""
    encoder, folder = exported(tmp_path, "hf", VIT, {"bias": False})
    again = Encoder.load(edited(folder, {}))
    assert again.backbone.config["bias"] is False
    # at other sizes transformers resamples positions otherwise
    ours = pooled(encoder.backbone, 28)
    torch.testing.assert_close(pooled(again.backbone, 28)[:2], ours[:2])
    given = create_backbone(VIT, bias=False, seed=9)
    load_official(given, folder)
    torch.testing.assert_close(pooled(given, 28), pooled(encoder.backbone, 28))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    _, folder = exported(tmp_path, "timm", VIT, {})
    weights = load_file(folder / "model.safetensors")
    weights["blocks.1.mlp.fc2.bias"] = weights["blocks.1.mlp.fc2.bias"].double()
    weights["blocks.1.mlp.fc2.bias"][3] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"too large for float32: blocks\.1\.mlp\.fc2\.bias;"):
        Encoder.load(folder)
