"""A hub folder's preparation of images is transformers' own, or timm's, or is refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

import vitrail
from vitrail.data.views.preparation import Preparation
from vitrail.encoder import Encoder
from vitrail.interop.read.weights_file import read_checkpoint

SIDE = 32
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": SIDE,
    "patch_size": 8,
}
SHAPES = [(40, 57), (71, 33), (32, 32), (160, 35), (9, 300)]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision resizes 8 bits as such only where the processor has AVX2, else in floats."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def pictures() -> list[np.ndarray]:
    """Noise: the hardest case for a filter and its rounding."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]


def drawn(model: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def hub_folder(folder: Path, model: Any, processor: dict[str, Any] | None) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def vit(**more: Any) -> Any:
    return drawn(ViTModel(ViTConfig(**SIZES, **more), add_pooling_layer=False))


def dinov2(**more: Any) -> Any:
    return drawn(Dinov2Model(Dinov2Config(**SIZES | {"image_size": 56}, **more)))


SQUARE = {"size": {"height": SIDE, "width": SIDE}}
CUT = {"size": {"shortest_edge": 37}, "crop_size": {"height": SIDE, "width": SIDE}}
# name -> model, preprocessor_config.json
PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ViT squashed, bilinear": (vit, {"image_processor_type": "ViTImageProcessor", **SQUARE}),
    "ViT squashed, bicubic": (
        vit,
        {"feature_extractor_type": "ViTFeatureExtractor", "resample": 3} | SQUARE,
    ),
    "a size of one number": (vit, {"feature_extractor_type": "ViTFeatureExtractor", "size": SIDE}),
    "an edge of one number": (
        vit,
        {"image_processor_type": "BitImageProcessor", "size": 41, "crop_size": SIDE},
    ),
    "DINOv2 cut": (dinov2, {"image_processor_type": "BitImageProcessor", **CUT}),
    "DINOv2 cut, bilinear": (
        dinov2,
        {"image_processor_type": "BitImageProcessor", **CUT}
        | {"resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
    ),
    "squashed, then cut": (
        vit,
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 39, "width": 39}}
        | {"crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "the class is that of the model": (vit, {"do_convert_rgb": None, **SQUARE}),
    "not normalised": (
        vit,
        {"image_processor_type": "ViTImageProcessor", "do_normalize": False} | SQUARE,
    ),
    "not rescaled": (
        vit,
        {"image_processor_type": "ViTImageProcessor", "do_rescale": False, **SQUARE}
        | {"image_mean": [127.5] * 3, "image_std": [60.0] * 3},
    ),
    "rescaled to 0..2": (
        vit,
        {"image_processor_type": "ViTImageProcessor", "rescale_factor": 2 / 255, **SQUARE},
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_features_are_those_of_transformers_own_pipeline(tmp_path: Path, name: str) -> None:
    build, processor = PIPELINES[name]
    model = build()
    folder = hub_folder(tmp_path, model, processor)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    encoder = vitrail.load(folder)
    for picture in pictures():
        pixels = theirs(images=[picture], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
        found = encoder.transform([picture])
        assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def test_they_are_for_swin_too(tmp_path: Path) -> None:
    sizes = {"image_size": 28, "patch_size": 2, "window_size": 7, "embed_dim": 32}
    model = drawn(SwinModel(SwinConfig(**sizes, depths=[2, 2], num_heads=[2, 4])))
    processor = {"image_processor_type": "ViTImageProcessor", "resample": 3}
    folder = hub_folder(tmp_path, model, processor | {"size": {"height": 28, "width": 28}})
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = theirs(images=pictures()[:1], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output.numpy()
    found = vitrail.load(folder).transform(pictures()[:1])
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "images that keep their sizes": ({"do_resize": False}, "do_resize is false"),
    "images that keep their shapes": (
        {"size": {"shortest_edge": 37}, "do_center_crop": False},
        "nothing is cropped",
    ),
    "a crop above the size": ({"size": {"shortest_edge": 30}}, "crop_size is 224, above size, 30"),
    "oblongs": ({"size": {"height": 30, "width": 40}}, "size is {'height': 30, 'width': 40}"),
    "an oblong crop": ({"crop_size": {"height": 8, "width": 16}}, "crop_size is {'height': 8"),
    "a longest edge": ({"size": {"longest_edge": 30}}, "size is {'longest_edge': 30}"),
    "nearest": ({"resample": 0}, r"resample is 0 \(nearest\)"),
    "lanczos": ({"resample": 1}, r"resample is 1 \(lanczos\)"),
    "another class": ({"image_processor_type": "DINOv3ViTImageProcessorFast"}, "'DINOv3ViTImage"),
    "padding": ({"do_pad": True}, "do_pad is True"),
    "an unknown step": ({"do_flip_channel_order": True}, "do_flip_channel_order is True"),
    "means of another count": ({"image_mean": [0.5], "image_std": [0.5]}, "takes 3 channel"),
    "words": ({"image_mean": ["a", "b", "c"]}, "image_mean is"),
    "no size": ({"size": {"height": 0, "width": 0}}, "size is"),
    "a factor of nothing": ({"rescale_factor": 0}, "rescale_factor is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    processor = {"image_processor_type": "BitImageProcessor"} | change
    folder = hub_folder(tmp_path, vit(), processor)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{message}"):
        vitrail.load(folder)


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ({"crop_pct": 0.8, "crop_mode": "center", "interpolation": "bicubic"}, "center"),
        ({"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bilinear"}, "center"),
        ({"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"}, "squash"),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, "center"),
    ],
)
def test_timms_pipeline(tmp_path: Path, cfg: dict[str, Any], told: str) -> None:
    """Its images are Pillow's: on photographs, the two roundings part by a level at few pixels."""
    arguments = {"img_size": SIDE, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1}
    model = drawn(timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    cfg = cfg | {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, SIDE, SIDE]}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": cfg}))
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(cfg))
    encoder = Encoder.load(tmp_path)
    assert encoder.preprocess.keep_aspect is (told == "center")
    y, x = np.mgrid[0:90, 0:131]
    planes = [np.sin(x / 17) * 90 + 120, np.cos(y / 13) * 90 + 120, np.sin((x + y) / 29) * 90 + 120]
    picture = np.stack(planes, axis=2).astype(np.uint8)
    expected = theirs(Image.fromarray(picture))
    found = encoder.preprocess([torch.from_numpy(picture).permute(2, 0, 1)])[0]
    assert (found - expected).abs().max() < 1.01 / 255 / 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode is 'border'"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"crop_pct": 2}, "crop_pct is 2"),
        ({"mean": [0.5], "std": [0.5]}, r"mean is \[0.5\]"),
    ],
)
def test_what_is_timms_alone_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = timm.create_model("resnet18", num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "pretrained_cfg": change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        Encoder.load(tmp_path)


def test_what_is_assumed_is_said_and_can_be_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(tmp_path, vit(), None)
    encoder = vitrail.load(folder)
    (line,) = caplog.messages
    assert "assumed: mean 0.485 0.456 0.406, std 0.229" in line
    assert "interpolation bicubic, the central 32 of 37 pixels" in line
    assert line.endswith("Change it by --mean, --std, --interpolation, --crop")
    caplog.clear()
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    changed = vitrail.load(folder, preparation=half).preprocess
    assert (changed.mean, changed.std, changed.resize) == ((0.5,) * 3, (0.5,) * 3, 37)
    (line,) = caplog.messages
    assert "mean" not in line
    caplog.clear()
    whole = vitrail.load(folder, preparation=half | {"interpolation": "bilinear", "crop": 1.0})
    assert (whole.preprocess.interpolation, whole.preprocess.resize) == ("bilinear", SIDE)
    assert not caplog.messages
    assert encoder.preprocess.mean != whole.preprocess.mean
    with pytest.raises(ValueError, match="1 values, and the encoder takes 3 channel"):
        vitrail.load(folder, preparation={"mean": [0.5], "std": [0.5]})
    with pytest.raises(ValueError, match="crop is 2"):
        Preparation(crop=2.0)


def test_what_a_folder_says_in_part_is_followed_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(tmp_path, vit(), {"image_mean": [0.5] * 3, "image_std": [0.2] * 3})
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]  # neither file says the class now
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        preprocess = Encoder.load(folder).preprocess
    assert (preprocess.mean, preprocess.size, preprocess.resize) == ((0.5,) * 3, SIDE, 37)
    (line,) = caplog.messages
    assert "assumed: interpolation bicubic, the central 32 of 37 pixels." in line


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_shards(tmp_path: Path, suffix: str) -> None:
    folder = hub_folder(tmp_path, vit(), {"image_processor_type": "ViTImageProcessor", **SQUARE})
    whole = load_file(folder / "model.safetensors")
    expected = Encoder.load(folder).transform(pictures())
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places = {}
    for part, keys in enumerate((sorted(whole)[::2], sorted(whole)[1::2]), 1):
        name = f"{stem}-{part:05}-of-00002.{suffix}"
        held = {key: whole[key] for key in keys}
        save_file(held, folder / name) if suffix == "safetensors" else torch.save(
            held, folder / name
        )
        places |= dict.fromkeys(keys, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    np.testing.assert_array_equal(Encoder.load(folder).transform(pictures()), expected)
    np.testing.assert_array_equal(Encoder.load(index).transform(pictures()), expected)
    first = places[sorted(whole)[0]]
    for changed, message in (
        ({}, "has no weight_map"),
        (places | {"more": "../elsewhere.bin"}, "is not the name of a file beside it"),
        (places | {"more": "/etc/passwd"}, "is not the name of a file beside it"),
        (places | {"more": f"{stem}-00003.{suffix}"}, "there is no such file beside it"),
        (places | {"more": first}, f"{first} lacks more"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(folder)


def test_a_folder_of_another_frameworks_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds tf_model\.h5, which vitrail does not read"):
        Encoder.load(tmp_path)
