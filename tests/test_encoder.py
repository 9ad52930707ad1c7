import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from vitrail.backbones.create import create_backbone
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder


def make(channels=3, seed=0, size=16):
    backbone = create_backbone(
        "vit_nano_patch4_28", img_size=size, in_chans=channels, seed=seed, width=16, depth=2
    )
    preprocess = Preprocess(size, size, (0.4,) * channels, (0.3,) * channels)
    return Encoder(backbone, preprocess, {"seed": seed, "data": "digits", "step": 3})


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def trained(encoder):
    """Weights that are not the initial ones."""
    with torch.no_grad():
        for p in encoder.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return encoder


def test_a_saved_encoder_comes_back_the_same(tmp_path):
    encoder = trained(make())
    encoder.save(tmp_path / "run")
    images = pixels(5, 20, 24, 3)
    expected = encoder.transform(images)
    for path in ("", "encoder.safetensors", "encoder.json"):
        again = Encoder.load(tmp_path / "run" / path)
        np.testing.assert_array_equal(again.transform(images), expected)
    assert sorted(os.listdir(tmp_path / "run")) == ["encoder.json", "encoder.safetensors"]
    described = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert described["backbone"] == "vit_nano_patch4_28"
    assert described["kwargs"]["width"] == 16
    assert described["channels"] == 3
    assert described["step"] == 3


def test_untrained_has_the_initial_weights(tmp_path):
    initial = {k: v.clone() for k, v in make(seed=7).backbone.state_dict().items()}
    trained(make(seed=7)).save(tmp_path)
    untrained = Encoder.load(tmp_path).untrained()
    for name, value in untrained.backbone.state_dict().items():
        assert torch.equal(value, initial[name]), name


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    encoder = make()
    encoder.save(tmp_path)
    before = (tmp_path / "encoder.safetensors").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        trained(encoder).save(tmp_path)
    assert (tmp_path / "encoder.safetensors").read_bytes() == before


def test_every_form_of_the_same_images_gives_the_same_features(tmp_path):
    encoder = make()
    array = pixels(4, 20, 24, 3)
    for i, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    expected = encoder.transform(array, batch_size=3)
    assert expected.shape == (4, 16)
    assert expected.dtype == np.float32
    first = array.transpose(0, 3, 1, 2)
    pils = [Image.fromarray(image) for image in array]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    forms = [first, torch.from_numpy(array), torch.from_numpy(first.copy()), list(array)]
    forms += [list(first), pils, paths, [str(p) for p in paths], [array[0], pils[1], *paths[2:]]]
    for form in forms:
        np.testing.assert_allclose(encoder.transform(form, batch_size=2), expected, atol=1e-5)


def test_images_of_different_sizes():
    images = [pixels(10, 30, 3), pixels(40, 16, 3), pixels(16, 16)]
    assert make().transform(images).shape == (3, 16)


def test_grey_and_rgb_are_turned_into_each_other():
    grey = pixels(5, 20, 20)
    as_rgb = np.repeat(grey[..., None], 3, axis=3)
    rgb, one = make(3), make(1)
    np.testing.assert_allclose(rgb.transform(grey), rgb.transform(as_rgb), atol=1e-6)
    np.testing.assert_allclose(one.transform(as_rgb), one.transform(grey), atol=1e-5)
    colours = pixels(2, 20, 20, 3)
    pils = [Image.fromarray(c) for c in colours]
    np.testing.assert_allclose(one.transform(colours), one.transform(pils), atol=5e-3)


def test_transparent_pixels_are_white():
    image = pixels(1, 16, 16, 4)
    image[..., 3] = 0
    white = np.full((1, 16, 16, 3), 255, dtype=np.uint8)
    np.testing.assert_allclose(make().transform(image), make().transform(white), atol=1e-6)


def test_nothing_in_nothing_out():
    assert make().transform([]).shape == (0, 16)
    assert make().transform(pixels(0, 16, 16, 3)).shape == (0, 16)


def test_transform_leaves_mode_and_gradients_alone():
    encoder = make()
    encoder.backbone.train()
    encoder.transform(pixels(2, 16, 16, 3))
    assert encoder.backbone.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 3)), r"dtype float64: pass uint8 in 0\.\.255"),
        (torch.zeros(2, 3, 16, 16), r"dtype float32: pass uint8"),
        ([np.zeros((16, 16))], r"pixels of image 0 have dtype float64"),
        (pixels(16, 16), r"shape \[16, 16\].*leading axis"),
        (pixels(2, 3, 16, 3), r"\[3, 16, 3\]: either axis could be the channels"),
        (pixels(2, 7, 16, 9), r"\[7, 16, 9\]: no axis can be the channels"),
        (["/no/such/file.png"], r"image 0 \(/no/such/file.png\): there is no such file"),
        ("cat.png", r"a sequence of images, not one"),
        ([3], r"image 0 is a int"),
        ([pixels(2, 2, 2, 2)], r"image 0 has shape"),
        ([Image.new("F", (8, 8))], r"image 0: .*floating-point"),
    ],
)
def test_what_are_not_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        make().transform(images)


def test_it_works_in_a_pipeline():
    encoder, images = make(1), pixels(30, 16, 16)
    labels = np.arange(30) % 3
    pipeline = make_pipeline(encoder, LogisticRegression(max_iter=1000)).fit(images, labels)
    assert pipeline.predict(images).shape == (30,)
    check_is_fitted(encoder)
    assert encoder.fit(images) is encoder
    assert list(encoder.get_feature_names_out()) == [f"encoder{i}" for i in range(16)]
    np.testing.assert_array_equal(clone(encoder).transform(images), encoder.transform(images))
    assert "vit_nano_patch4_28" in repr(encoder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        Encoder.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no encoder\.safetensors and no encoder\.json"):
        Encoder.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has not finished.*vitrail resume"):
        Encoder.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    make().save(tmp_path)
    weights, described = tmp_path / "encoder.safetensors", tmp_path / "encoder.json"
    whole, text = weights.read_bytes(), described.read_text()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="safetensors is damaged"):
        Encoder.load(tmp_path)
    weights.write_bytes(b"")
    with pytest.raises(ValueError, match="safetensors is damaged"):
        Encoder.load(tmp_path)
    weights.write_bytes(whole)
    for bad in ("{", "[1]", "{}", text.replace('"size"', '"saize"')):
        described.write_text(bad)
        with pytest.raises(ValueError, match=r"encoder\.json"):
            Encoder.load(tmp_path)


def test_weights_of_another_backbone_list_what_differs(tmp_path):
    make().save(tmp_path)
    path = tmp_path / "encoder.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"kwargs": described["kwargs"] | {"depth": 3}}))
    with pytest.raises(ValueError, match=r"lacks blocks\.2\..* more"):
        Encoder.load(tmp_path)
    path.write_text(json.dumps(described | {"kwargs": described["kwargs"] | {"width": 32}}))
    with pytest.raises(ValueError, match=r"is \[.*16.*\] instead of \[.*32.*\]"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((20, 24, 3), r"\[H, W, C\]"), ((20, 24, 1), r"\[H, W, C\]"), ((3, 20, 24), r"\[C, H, W\]")],
)
def test_one_image_where_several_are_expected_is_refused(shape, axes):
    with pytest.raises(ValueError, match=f"one image {axes} or {shape[0]} grey ones") as error:
        make().transform(pixels(*shape))
    assert "images[None]" in str(error.value)
    assert len(make().transform(pixels(*shape)[None])) == 1
    assert len(make().transform(pixels(7, 20, 24))) == 7  # not a number of channels


def test_three_images_for_a_grey_encoder_are_taken_as_three_and_said_to_be():
    with pytest.warns(UserWarning, match=r"taken as 3 grey images \[N, H, W\]"):
        assert len(make(channels=1).transform(pixels(3, 20, 24))) == 3


@pytest.mark.parametrize("kind", [str, object, bytes])
def test_an_array_of_paths_is_as_good_as_a_list(tmp_path, kind):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.fromarray(pixels(20, 24, 3)).save(path)
    encoder = make()
    given = [os.fsencode(path) for path in paths] if kind is bytes else paths
    np.testing.assert_array_equal(
        encoder.transform(np.array(given, dtype=None if kind is bytes else kind)),
        encoder.transform(paths),
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.array("a.png"), r"has shape \[\]"),
        (np.array([["a.png"]]), r"has shape \[1, 1\]"),
        (b"a.png", "not one"),
    ],
)
def test_what_is_no_list_of_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        make().transform(images)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    encoder = make()
    with torch.no_grad():
        encoder.backbone.norm.weight[2] = value
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match=r"NaN or infinite: norm\.weight \(1 of 16\)"):
        Encoder.load(tmp_path)


def test_features_that_are_not_finite_are_refused():
    encoder = make()
    with torch.no_grad():
        encoder.backbone.norm.weight[2] = float("nan")
    with pytest.raises(ValueError, match="the features of 2 of 2 images hold NaN"):
        encoder.transform(pixels(2, 20, 24, 3))


def test_a_description_of_endless_depth_is_refused(tmp_path):
    make().save(tmp_path)
    (tmp_path / "encoder.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        Encoder.load(tmp_path)
