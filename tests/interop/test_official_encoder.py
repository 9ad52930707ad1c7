"""Other people's weights as encoders: transformed, embedded, evaluated, saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitrail
from tests.interop import layouts
from vitrail.encoder import Encoder
from vitrail.evals.embed import embed
from vitrail.evals.evaluate import evaluate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    torch.save(layouts.dino_backbone(), tmp_path / "dino_pretrain.pth")
    return tmp_path / "dino_pretrain.pth"


def pixels(n: int = 4, side: int = 18) -> np.ndarray:
    """At 18 pixels, the size resized to for 16: nothing is resampled, 1 pixel is cut all around."""
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def test_a_file_is_an_encoder(dino: Path) -> None:
    encoder = vitrail.load(dino)
    assert (encoder.preprocess.size, encoder.preprocess.resize) == (16, 18)
    assert (encoder.preprocess.mean, encoder.preprocess.std) == (MEAN, STD)
    assert encoder.info == {
        "seed": 0,
        "objective": None,
        "format": "DINO (backbone)",
        "weights": "dino_pretrain.pth",
    }
    cut = torch.from_numpy(pixels()[:, 1:17, 1:17]).permute(0, 3, 1, 2) / 255
    normalised = (cut - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = encoder.backbone.eval()(normalised).pooled
    np.testing.assert_allclose(encoder.transform(pixels()), expected, rtol=1e-4, atol=1e-4)


def test_a_hub_folder_is_an_encoder(tmp_path: Path) -> None:
    save_file(layouts.dinov2(registers=4), tmp_path / "model.safetensors")
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        encoder = Encoder.load(path)
        assert encoder.preprocess.std == (0.25, 0.25, 0.25)
        assert encoder.backbone.config["heads"] == 8
        assert encoder.info["weights"] == path.name


def test_it_is_saved_and_comes_back_as_ours(dino: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(dino)
    encoder.save(tmp_path / "ours")
    again = Encoder.load(tmp_path / "ours")
    np.testing.assert_array_equal(again.transform(pixels()), encoder.transform(pixels()))
    assert again.info["format"] == "DINO (backbone)"
    assert again.backbone.config == encoder.backbone.config
    before = encoder.untrained().transform(pixels())
    assert not np.allclose(before, encoder.transform(pixels()))


def test_it_is_evaluated_and_embedded(dino: Path, tmp_path: Path) -> None:
    results = evaluate(dino, "digits", ["knn"], out=tmp_path / "out", quiet=True)
    assert set(results["knn"]) == {"raw", "untrained", "trained"}
    assert 0.3 < results["knn"]["trained"] <= 1  # random features know digits apart
    assert (tmp_path / "out" / "evaluation.json").exists()
    path = embed(dino, tmp_path / "features.npz", "digits", split="test")
    with np.load(path) as arrays:
        assert arrays["features"].shape == (results["n_test"], layouts.WIDTH)


def test_without_data_it_is_asked_for(dino: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say what it was trained on.*--data"):
        evaluate(dino, quiet=True)


@pytest.mark.parametrize("content", [b"", b"some text\n" * 30])
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Encoder.load(tmp_path / "notes.txt")


def test_a_partial_file_is_refused(tmp_path: Path) -> None:
    weights = layouts.dino_backbone()
    del weights["blocks.2.norm2.weight"]
    torch.save({"teacher": weights}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"half\.pth, read as DINO.*\n.*blocks\.2\.norm2\.weight"):
        Encoder.load(tmp_path / "half.pth")
