"""Weights of timm's, transformers' and torchvision's own models: our features are theirs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from vitrail.backbones.families import TimmResNet, TimmSwin
from vitrail.backbones.registry import BACKBONES
from vitrail.interop.read.load import Official, read_official

SIDE = 32
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": SIDE,
    "patch_size": 8,
}

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def randomised(model: nn.Module) -> nn.Module:
    """Every weight matters: none is a zero or a one, and batch norms have statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = 0.2 * torch.randn(value.shape, generator=generator)
                value.copy_(
                    1 + drawn.abs() if name.endswith(("running_var", "bn.weight")) else drawn
                )
    return model.eval()


def hub_folder(folder: Path, model: Any, **preprocessing: object) -> Path:
    model.save_pretrained(folder)
    if preprocessing:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def images(side: int = SIDE, other: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, side, other or side, generator=generator)


def features(official: Official, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled, and every patch: a mean over patches hides what is wrong with a few."""
    with torch.no_grad():
        both = official.build().eval()(pixels)
    assert both.patches is not None
    return both.pooled, both.patches.flatten(1, 2)


def tokens(model: Any, pixels: Tensor, prefix: int = 1) -> tuple[Tensor, Tensor]:
    """MAE's encoder sorts patches by `noise`: here they stay in order."""
    n_patches = (pixels.shape[2] // 8) * (pixels.shape[3] // 8)
    in_order = {"noise": torch.arange(n_patches).float().expand(len(pixels), -1)}
    more = in_order if model.config.model_type == "vit_mae" else {}
    with torch.no_grad():
        states = model(pixel_values=pixels, **more).last_hidden_state
    return states[:, 0], states[:, prefix:]


def prefix_of(model: Any) -> int:
    return 1 + getattr(model.config, "num_register_tokens", 0)


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def vit_mae() -> Any:
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            **SIZES,
            layer_norm_eps=1e-6,
            mask_ratio=0.0,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        )
    )


HF_MODELS = {
    "ViT": (
        lambda: ViTModel(ViTConfig(**SIZES, layer_norm_eps=1e-6)),
        lambda m: m,
        "ViT (transformers)",
    ),
    "ViT, its own eps": (
        lambda: ViTModel(ViTConfig(**SIZES)),
        lambda m: m,
        "ViT (transformers)",
    ),
    "ViT with a head": (
        lambda: ViTForImageClassification(ViTConfig(**SIZES, layer_norm_eps=1e-6)),
        lambda m: m.vit,
        "ViT (transformers)",
    ),
    "DINOv2": (
        lambda: Dinov2Model(Dinov2Config(**SIZES)),
        lambda m: m,
        "DINOv2 (transformers)",
    ),
    "DINOv2 with a head and SwiGLU": (
        lambda: Dinov2ForImageClassification(Dinov2Config(**SIZES, use_swiglu_ffn=True)),
        lambda m: m.dinov2,
        "DINOv2 (transformers)",
    ),
    "DINOv2 with registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)),
        lambda m: m,
        "DINOv2 with registers (transformers)",
    ),
    "ViT-MAE": (vit_mae, lambda m: m.vit, "ViT-MAE (transformers)"),
}


@pytest.mark.parametrize("name", HF_MODELS)
def test_a_hub_folder(tmp_path: Path, name: str) -> None:
    build, encoder, format_name = HF_MODELS[name]
    model = randomised(build())
    official = read_official(hub_folder(tmp_path, model))
    assert official.format == format_name
    assert official.kwargs["heads"] == 4
    assert_same(features(official, images()), tokens(encoder(model), images(), prefix_of(model)))


@pytest.mark.parametrize("name", HF_MODELS)
def test_the_names_in_memory_and_a_lone_file(tmp_path: Path, name: str) -> None:
    """torch.save of a model's state dict: transformers 5 has other names there than on the hub."""
    build, encoder, format_name = HF_MODELS[name]
    model = randomised(build())
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    official = read_official(tmp_path / "pytorch_model.bin")
    assert official.format == format_name
    assert_same(features(official, images()), tokens(encoder(model), images(), prefix_of(model)))
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "mine.bin")
    alone = read_official(tmp_path / "mine.bin")
    assert alone.kwargs.get("heads") == 1  # nothing tells them: 64 features each, or one
    assert alone.weights.keys() == official.weights.keys()


@pytest.mark.parametrize("name", ["ViT", "DINOv2", "DINOv2 with registers"])
def test_positions_at_other_sizes_are_transformers(tmp_path: Path, name: str) -> None:
    model = randomised(HF_MODELS[name][0]())
    official = read_official(hub_folder(tmp_path, model))
    pixels = images(48, 24)
    if name != "ViT":
        assert_same(features(official, pixels), tokens(model, pixels, prefix_of(model)))
        return
    with torch.no_grad():
        states = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    assert_same(features(official, pixels), (states[:, 0], states[:, 1:]))


@pytest.mark.parametrize("kind", ["ViT", "DINOv2"])
def test_another_epsilon_is_carried(tmp_path: Path, kind: str) -> None:
    build = {
        "ViT": lambda: ViTModel(ViTConfig(**SIZES, layer_norm_eps=1e-3)),
        "DINOv2": lambda: Dinov2Model(Dinov2Config(**SIZES, layer_norm_eps=1e-3)),
    }
    model = randomised(build[kind]())
    official = read_official(hub_folder(tmp_path, model))
    assert official.kwargs["norm_eps"] == 1e-3
    assert_same(features(official, images()), tokens(model, images()))


@pytest.mark.parametrize(("eps", "kind"), [(1e-3, "swin"), (-1, "vit"), ("x", "vit")])
def test_an_epsilon_that_cannot_be_carried_is_refused(tmp_path: Path, eps: Any, kind: str) -> None:
    model = ViTModel(ViTConfig(**SIZES))
    folder = hub_folder(tmp_path, model)
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_norm_eps": eps, "model_type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layer_norm_eps is"):
        read_official(folder)


def test_timms_config_is_used(tmp_path: Path) -> None:
    model = timm_vit()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_official(tmp_path).preprocess["mean"] == (0.1, 0.2, 0.3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_official(tmp_path)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    model = ViTModel(ViTConfig(**SIZES, hidden_act="relu"))
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        read_official(hub_folder(tmp_path, model))


@pytest.mark.parametrize("part", ["key.bias", "query.weight"])
def test_a_part_of_a_joined_weight_is_missed_by_name(tmp_path: Path, part: str) -> None:
    folder = hub_folder(tmp_path, ViTModel(ViTConfig(**SIZES)))
    weights = torch.load(_as_bin(folder), weights_only=True)
    weights.pop(f"encoder.layer.1.attention.attention.{part}")
    torch.save(weights, folder / "pytorch_model.bin")
    message = (
        r"(?s)read as ViT \(transformers\).*missing: blocks\.1\.attn\.qkv\.\w+\n"
        r".*unexpected: encoder\.layer\.1\.attention\.attention\.\w+\.\w+, "
    )
    with pytest.raises(ValueError, match=message):
        read_official(folder)


def _as_bin(folder: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def timm_vit(**more: Any) -> VisionTransformer:
    # A width without a row: 5 heads of 64 features, as for any ViT.
    arguments = {"img_size": SIDE, "patch_size": 8, "embed_dim": 320, "depth": 2, "num_heads": 5}
    model = VisionTransformer(**arguments | {"num_classes": 5, "dynamic_img_size": True} | more)
    randomised(model)
    return model


TIMM_VITS: dict[str, dict[str, Any]] = {
    "with a head": {},
    "with LayerScale, as DINOv2": {"init_values": 1e-5, "num_classes": 0},
    "with registers without positions": {"reg_tokens": 4, "no_embed_class": True},
    "with registers with positions": {"reg_tokens": 4},
    "with a class token without a position": {"no_embed_class": True},
    "with SwiGLU, as DINOv2-giant": {
        "init_values": 1e-5,
        "mlp_layer": SwiGLUPacked,
        "act_layer": nn.SiLU,
        "mlp_ratio": 1712 / 320,
        "num_classes": 0,
    },
}


@pytest.mark.parametrize("name", TIMM_VITS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timms_vits(tmp_path: Path, name: str, suffix: str) -> None:
    """Also at other sizes: timm resamples with antialiasing, and so do we."""
    model = timm_vit(**TIMM_VITS[name])
    path = tmp_path / f"vit{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    official = read_official(path)
    assert official.format == "ViT (timm)"
    for pixels in (images(), images(48, 24)):
        assert_same(features(official, pixels), timm_tokens(model, pixels))


def timm_tokens(model: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        states = model.forward_features(pixels)
    return states[:, 0], states[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_a_timm_vit_without_a_head_is_taken_for_dinos(tmp_path: Path, no_embed_class: bool) -> None:
    """Its keys are DINO's, and so is how it is resampled; at its own size it is the same."""
    model = timm_vit(num_classes=0, no_embed_class=no_embed_class)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    official = read_official(tmp_path / "vit.pth")
    assert official.format == "DINO (backbone)"
    assert_same(features(official, images()), timm_tokens(model, images()))


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows of the families made of timm's modules."""
    monkeypatch.setitem(BACKBONES._own, "swin_a", TimmSwin(56, 8, (1, 1), (1, 2), 4, 7))
    monkeypatch.setitem(BACKBONES._own, "swin_b", TimmSwin(56, 16, (2, 2), (2, 4), 4, 7))
    monkeypatch.setitem(BACKBONES._own, "swin_c", TimmSwin(112, 16, (2, 2), (2, 4), 4, 7))
    for name in ("resnet18", "resnet26"):
        monkeypatch.setitem(BACKBONES._own, f"{name}_", TimmResNet(224, name))


SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def timm_swin(side: int, window: int) -> SwinTransformer:
    return SwinTransformer(img_size=side, patch_size=4, num_classes=5, window_size=window, **SWIN)


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("official_layout", [False, True])
@pytest.mark.parametrize(("side", "window"), [(56, 7), (64, 4)])
def test_swins(tmp_path: Path, official_layout: bool, side: int, window: int) -> None:
    model = randomised(timm_swin(side, window))
    weights = dict(model.state_dict())
    if official_layout:
        weights = {
            re.sub(r"layers\.1\.downsample", "layers.0.downsample", key): value
            for key, value in weights.items()
        }
        weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
        weights["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
        assert "layers.1.downsample.norm.weight" not in weights
    torch.save({"model": weights}, tmp_path / "swin.pth")
    found = read_official(tmp_path / "swin.pth")
    assert (found.format, found.backbone) == ("Swin (official, timm)", "swin_b")
    pixels = images(side)
    with torch.no_grad():
        cells = model.forward_features(pixels).flatten(1, 2)
    assert_same(features(found, pixels), (cells.mean(1), cells))


def hf_swin(side: int, headed: bool = False) -> Any:
    config = SwinConfig(image_size=side, **SWIN, num_hidden_layers=2, window_size=7)
    return randomised((SwinForImageClassification if headed else SwinModel)(config))


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("headed", [False, True])
@pytest.mark.parametrize(("side", "row"), [(56, "swin_b"), (112, "swin_c")])
def test_transformers_swin(tmp_path: Path, headed: bool, side: int, row: str) -> None:
    """The second stage is shifted at 112 pixels and not at 56, and the rows differ in nothing else.

    Pooled features hide that it is (3e-5 here): patches do not (1e-2).
    """
    model = hf_swin(side, headed)
    official = read_official(hub_folder(tmp_path, model))
    assert (official.format, official.backbone) == ("Swin (transformers)", row)
    assert official.preprocess["size"] == side
    with torch.no_grad():
        theirs = (model.swin if headed else model)(pixel_values=images(side))
    expected = (theirs.pooler_output, theirs.last_hidden_state)
    assert_same(features(official, images(side)), expected)
    torch.save(model.state_dict(), tmp_path / "memory.pth")  # transformers 5's names in memory
    assert read_official(tmp_path / "memory.pth").weights.keys() == official.weights.keys()


@pytest.mark.usefixtures("maps")
def test_a_swin_of_a_size_that_no_row_has_is_shifted_as_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BACKBONES._own, "swin_c")
    model = hf_swin(112)
    official = read_official(hub_folder(tmp_path, model))
    assert (official.backbone, official.kwargs["img_size"]) == ("swin_b", 112)
    with torch.no_grad():
        theirs = model(pixel_values=images(112))
    expected = (theirs.pooler_output, theirs.last_hidden_state)
    assert_same(features(official, images(112)), expected)


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("counted", [True, False])
def test_resnets(tmp_path: Path, counted: bool) -> None:
    model = torchvision.models.resnet18().eval()
    weights = model.state_dict()
    for key in list(weights):
        if "num_batches_tracked" in key and not counted:
            del weights[key]  # files from before PyTorch 0.4.1
    torch.save(weights, tmp_path / "resnet.pth")
    official = read_official(tmp_path / "resnet.pth")
    assert official.format == "ResNet (torchvision, timm)"
    assert BACKBONES[official.backbone].timm_name == "resnet18"  # type: ignore[attr-defined]
    ours = features(official, images(64))
    model.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours[0], model(images(64)), rtol=1e-5, atol=1e-5)
    same = timm.create_model("resnet18", pretrained=False)
    same.load_state_dict(torchvision.models.resnet18().state_dict())  # the keys are the same


@pytest.mark.usefixtures("maps")
def test_a_partial_resnet_is_refused(tmp_path: Path) -> None:
    weights = torchvision.models.resnet18().state_dict()
    del weights["layer2.0.conv1.weight"]
    weights["neck.weight"] = torch.ones(3)
    torch.save(weights, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"missing: layer2\.0\.conv1\.weight\n.*: neck\.weight"):
        read_official(tmp_path / "resnet.pth")
