import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import ndimage

from vitrail.data.tools.scenes import (
    SHAPES,
    Layout,
    ideal_features,
    make_scene,
    run_lengths,
    write_scenes,
)

SMALL = Layout(size=96, gap=6)


def painted(code):
    """Returns the mask of uncompressed run lengths."""
    height, width = code["size"]
    flat = np.repeat(np.arange(len(code["counts"])) % 2 == 1, code["counts"])
    return flat.reshape(width, height).T


@settings(max_examples=60, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_are_cocos(mask):
    code = run_lengths(mask)
    np.testing.assert_array_equal(painted(code), mask)
    assert all(count > 0 for count in code["counts"][1:])
    assert json.loads(json.dumps(code)) == code


@pytest.mark.parametrize("index", range(12))
def test_objects_keep_apart_and_within(index):
    scene = make_scene(index, 1, SMALL)
    assert scene.image.shape == (3, 96, 96)
    assert len(scene.shapes) == len(scene.masks) <= 3
    assert set(scene.shapes) <= set(SHAPES)
    for one, other in combinations(scene.masks, 2):
        assert ndimage.distance_transform_edt(~one)[other].min() > SMALL.gap
    outside = ndimage.distance_transform_edt(np.pad(np.ones((96, 96)), 1))[1:-1, 1:-1]
    for mask in scene.masks:
        assert outside[mask].min() > SMALL.gap
        assert 0.005 < mask.mean() < 0.25
        assert ndimage.label(mask)[1] == 1


def test_what_is_an_object_can_be_seen():
    """Its mean colour is far from the ground's, on either side of the very edge."""
    for index in range(8):
        scene = make_scene(index, 2, SMALL)
        for mask in scene.masks:
            rim = ndimage.binary_dilation(mask, iterations=3) & ~mask
            inner = mask & ~ndimage.binary_erosion(mask, iterations=5)
            gap = scene.image[:, inner].mean(1) - scene.image[:, rim].mean(1)
            assert np.abs(gap).max() > 25


def test_a_scene_is_a_function_of_seed_and_index():
    one, again = make_scene(3, 5, SMALL), make_scene(3, 5, SMALL)
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.masks, again.masks)
    for other in (make_scene(4, 5, SMALL), make_scene(3, 6, SMALL)):
        assert (one.image != other.image).mean() > 0.5


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 80), st.integers(1, 4), st.integers(0, 3), st.integers(0, 1000))
def test_every_layout_has_a_scene(size, least, more, index):
    layout = Layout(size, least, least + more, gap=size // 8)
    scene = make_scene(index, 0, layout)
    assert 1 <= len(scene.masks) <= least + more
    assert scene.masks.any((1, 2)).all()
    assert scene.masks.sum(0).max() == 1


def test_the_number_of_objects_is_as_asked():
    counts = [
        len(make_scene(i, 0, Layout(size=96, least=2, most=2, gap=4)).masks) for i in range(9)
    ]
    assert counts == [2] * 9


def test_a_folder_holds_the_scenes(tmp_path):
    path = write_scenes(tmp_path / "new" / "scenes", 4, 7, SMALL)
    truth = json.loads(path.read_text())
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4]
    assert [row["id"] for row in truth["annotations"]] == list(
        range(1, len(truth["annotations"]) + 1)
    )
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for index, image in enumerate(truth["images"]):
        scene = make_scene(index, 7, SMALL)
        pixels = np.asarray(Image.open(path.parent / "images" / image["file_name"]))
        np.testing.assert_array_equal(pixels, scene.image.transpose(1, 2, 0))
        assert (image["height"], image["width"]) == pixels.shape[:2]
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        assert [names[row["category_id"]] for row in rows] == scene.shapes
        for row, mask in zip(rows, scene.masks, strict=True):
            np.testing.assert_array_equal(painted(row["segmentation"]), mask)
            x, y, width, height = row["bbox"]
            box = np.zeros_like(mask)
            box[y : y + height, x : x + width] = True
            assert not (mask & ~box).any()
            assert mask[y].any()
            assert mask[y + height - 1].any()
            assert mask[:, x].any()
            assert mask[:, x + width - 1].any()
            assert (row["area"], row["iscrowd"]) == (mask.sum(), 0)


def test_ideal_features_are_alike_within_an_object_and_nowhere_else():
    scene = make_scene(0, 0, Layout(size=96, least=2, most=2, gap=6))
    keys = ideal_features(scene, 24, noise=1.0)
    assert keys.dtype == np.float32
    label = np.concatenate([~scene.masks.any(0)[None], scene.masks])
    share = label.reshape(3, 24, 4, 24, 4).mean((2, 4))
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    groups = [unit[share[k] == 1] for k in range(3)]
    for a, b in combinations(range(3), 2):
        assert abs((groups[a] @ groups[b].T).mean()) < 0.1
    for group in groups:
        cosines = group @ group.T
        off = cosines[~np.eye(len(group), dtype=bool)]
        assert off.mean() == pytest.approx(0.5, abs=0.06)  # 1 / (1 + noise²)
    clean = ideal_features(scene, 24, noise=0.0)
    mixed = np.argwhere((share[1] > 0.3) & (share[1] < 0.7) & (share[2] == 0))[0]
    ground, one = clean[share[0] == 1][0], clean[share[1] == 1][0]
    weight = share[1][tuple(mixed)]
    np.testing.assert_allclose(clean[tuple(mixed)], (1 - weight) * ground + weight * one, atol=1e-5)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size is 16"):
        Layout(size=16)
    with pytest.raises(ValueError, match="from 3 to 2 objects"):
        Layout(least=3, most=2)
    with pytest.raises(ValueError, match="gap is 0 pixels"):
        Layout(gap=0)
    with pytest.raises(ValueError, match="count is 0"):
        write_scenes(tmp_path / "s", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        write_scenes(tmp_path, 1)
    with pytest.raises(ValueError, match="a grid of 7 patches does not divide 96"):
        ideal_features(make_scene(0, 0, SMALL), 7)
