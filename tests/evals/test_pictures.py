from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.backbones.contract import Backbone, Features
from vitrail.data.sources.registry import open_source
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.figures.grid import Cell, cell_side, heat, save_grid
from vitrail.evals.patches.pca import (
    otsu,
    parts_figure,
    patch_components,
    patch_features,
    pca_figure,
)
from vitrail.evals.patches.saliency import at_size, mark, mass_mask, saliency_figure, token_maps


class Flat(Backbone):
    """A backbone without patches."""

    embed_dim, in_chans, img_size = 4, 1, 8

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward_packed(self, images, draws=None):
        return [Features(x.flatten(1)[:, :4] * self.weight, None) for x in images]


@pytest.fixture
def images():
    source = open_source("digits:scattered", "test")
    return [source.read(i).image for i in range(4)]


@pytest.mark.parametrize("keep", [0.3, 0.6, 1.0])
def test_the_mask_is_the_smallest_that_holds_the_mass(keep):
    values = np.random.default_rng(0).random((5, 7)) ** 4
    mask = mass_mask(values, keep)
    assert values[mask].sum() >= keep * values.sum() * (1 - 1e-5)
    inside = values[mask]
    assert inside.sum() - inside.min() < keep * values.sum()
    assert mask.all() or inside.min() >= values[~mask].max()


def test_the_mask_of_equal_values_takes_the_first():
    assert mass_mask(np.ones((2, 5)), 0.6).ravel().tolist() == [True] * 6 + [False] * 4


def test_token_maps_are_the_backbones_scaled_to_one(images):
    encoder = tiny_encoder("digits:scattered")
    maps = token_maps(encoder, images)
    assert maps.shape == (4, 2, 7, 7)
    np.testing.assert_allclose(maps.sum((2, 3)), 1, atol=1e-5)
    own = encoder.backbone.token_maps(encoder.preprocess(images)).detach().numpy()
    np.testing.assert_allclose(maps, own / own.sum((2, 3), keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_nano_patch4_28", "crate_nano_patch4_28"])
def test_maps_at_another_size_see_the_same_part_of_the_image(images, name):
    encoder = tiny_encoder("digits:scattered", name=name)
    cropped = Encoder(encoder.backbone, replace(encoder.preprocess, resize=36), encoder.info)
    larger = at_size(cropped, 59, "saliency")  # rounded down to 56: 14 patches
    assert (larger.preprocess.size, larger.preprocess.resize) == (56, 72)
    assert token_maps(larger, images).shape == (4, 2, 14, 14)
    assert at_size(cropped, None, "pca") is cropped
    own = cropped.preprocess(images)
    again = torch.nn.functional.avg_pool2d(larger.preprocess(images), 2)
    assert (own - again).abs().mean() < 0.1 * own.std()


def test_a_mask_marks_pixels():
    image = np.full((4, 6, 1), 0.5)
    mask = np.array([[True, False, False], [False, False, True]])
    drawn = mark(image, mask, 0.0)
    np.testing.assert_allclose(drawn[:2, :2], 0.5)
    np.testing.assert_allclose(drawn[2:, 4:], 0.5)
    assert drawn[:2, 2:].max() < 0.2
    assert mark(image, mask).shape == (4, 6, 3)


@pytest.mark.parametrize("name", ["vit_nano_patch4_28", "crate_nano_patch4_28"])
@pytest.mark.parametrize(("draw", "rows"), [(saliency_figure, 5), (pca_figure, 4)])
def test_figures_are_the_same_picture_each_time(tmp_path, images, name, draw, rows):
    encoder = tiny_encoder("digits:scattered", name=name)
    first = draw(encoder, images, tmp_path / "a.png").read_bytes()
    assert first == draw(encoder, images, tmp_path / "b.png").read_bytes()
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    side = cell_side(28)
    assert drawn.shape[0] == rows * (side + 10) - 10
    assert len(np.unique(drawn.reshape(-1, 4), axis=0)) > 50
    assert not (tmp_path / ".a.png.writing").exists()


def test_components_find_a_planted_foreground_and_its_parts():
    """Background at 0; a blob at +u, whose halves differ along v."""
    rng = np.random.default_rng(0)
    patches = 0.05 * rng.normal(size=(3, 9, 9, 12))
    u, v = np.eye(12)[:2]
    truth = np.zeros((3, 9, 9), dtype=bool)
    truth[:, 2:7, 3:6] = True
    patches[truth] -= 5 * u
    patches[:, 2:4, 3:6] += v
    found = patch_components(patches.astype(np.float32))
    np.testing.assert_array_equal(found.foreground, truth)
    assert found.first[truth].min() > found.first[~truth].max()
    top, bottom = found.colours[:, 2:4, 3:6, 0], found.colours[:, 4:7, 3:6, 0]
    assert abs(top.mean() - bottom.mean()) > 0.7
    assert found.explained[0] > found.explained[1] > found.explained[2]


def test_components_do_not_change_sign_with_the_features():
    patches = np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(
        patch_components(patches).colours, patch_components(patches * 3).colours, atol=1e-5
    )


def test_constant_features_stay_finite():
    found = patch_components(np.ones((2, 4, 4, 8), dtype=np.float32))
    assert np.isfinite(found.first).all()
    assert np.isfinite(found.colours).all()


def test_otsu_splits_two_clouds():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 500), rng.normal(10, 1, 200)])
    assert 3 < otsu(values) < 7


def test_backbones_without_patches_are_refused_by_name():
    encoder = Encoder(Flat(), Preprocess(8, 8, (0.0,), (1.0,)), {"backbone": "flat"})
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="saliency: backbone flat has no tokens"):
        token_maps(encoder, [image])
    with pytest.raises(ValueError, match="saliency: backbone flat has no tokens"):
        at_size(encoder, 480, "saliency")
    with pytest.raises(ValueError, match="pca: backbone flat has no patch features"):
        patch_features(encoder, [image])


def test_a_grid_draws_frames_and_hostile_captions(tmp_path):
    cells = [Cell(np.zeros((8, 8, 1)), "$x$ \n<b>", "#d1495b"), Cell(np.ones((8, 8, 3)))]
    path = save_grid([cells], tmp_path / "g.png", side=40, columns=["a_$^", "b"])
    drawn = np.asarray(Image.open(path))
    assert drawn[34 + 1, 1].tolist() == [0xD1, 0x49, 0x5B, 255]
    assert drawn[34 + 20, 20].tolist() == [0, 0, 0, 255]
    assert drawn[34 + 20, 50 + 20].tolist() == [255, 255, 255, 255]


def test_heat_is_brightest_at_the_peak():
    values = np.zeros((4, 4), dtype=np.float32)
    values[1, 2] = 2.0
    drawn = heat(values, 40).sum(-1)
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert (y // 10, x // 10) == (1, 2)
    assert np.isfinite(heat(values * 0, 8)).all()


def test_parts_of_a_group_know_nothing_of_other_groups(tmp_path, monkeypatch):
    encoder = tiny_encoder("x")
    drawn = []

    def look(rows, path, **kwargs):
        drawn.append(rows)
        return path

    monkeypatch.setattr("vitrail.evals.patches.pca.save_grid", look)
    generator = torch.Generator().manual_seed(0)
    groups = {
        name: list(torch.randint(0, 256, (3, 1, 28, 28), generator=generator, dtype=torch.uint8))
        for name in ("a", "b")
    }
    parts_figure(encoder, groups, tmp_path / "both.png")
    parts_figure(encoder, {"b": groups["b"]}, tmp_path / "one.png")
    both, one = drawn
    assert (len(both), len(both[0]), len(one[0])) == (3, 4, 2)
    for of_two, alone in zip(both, one, strict=True):
        for a, b in zip(of_two[2:], alone, strict=True):
            np.testing.assert_array_equal(a.picture, b.picture)
