import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitrail.backbones.contract import TokenBackbone
from vitrail.data.contract import BadSampleError
from vitrail.data.tools.scenes import ideal_features, make_scene, write_scenes
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.patches.coco import (
    average_precision,
    evaluate_maskcut,
    open_coco,
    predictions,
    truth_masks,
)
from vitrail.evals.patches.coco_objects import decoded_lengths
from vitrail.evals.patches.maskcut import MaskCut, discover, to_image

SCENES = 6


class Hues(TokenBackbone):
    """Keys by eye: the ground of a scene is pale, objects are saturated, each of its own hue."""

    embed_dim, in_chans, img_size, patch_size, n_prefix = 3, 3, 240, 8, 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def embed(self, images):
        raise NotImplementedError

    encode = layer_states = forward_packed = token_maps = embed

    def token_keys(self, images):
        red, green, blue = torch.nn.functional.avg_pool2d(images, self.patch_size)[0]
        chroma = torch.stack([red - green, (red + green) / 2 - blue])
        ground = torch.full_like(red, 0.28)[None]
        return torch.cat([chroma, ground]).permute(1, 2, 0)[None] * self.weight


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "scenes"
    write_scenes(folder, SCENES)
    return folder


@pytest.fixture
def hues():
    preprocess = Preprocess(240, 240, (0.0,) * 3, (1.0,) * 3)
    return Encoder(Hues(), preprocess, {"seed": 0, "backbone": "hues"})


def one_class(truth):
    rows = [row | {"category_id": 1} for row in truth["annotations"]]
    return truth | {"annotations": rows, "categories": [{"id": 1, "name": "any"}]}


def stats_of(folder, truth, rows, kind):
    """Returns the numbers of pycocotools for two files."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(rows))
    expected = COCO(str(folder / "truth.json"))
    run = COCOeval(expected, expected.loadRes(str(folder / "found.json")), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return {"AP": run.stats[0], "AP50": run.stats[1], "AP75": run.stats[2]}


def guesses(coco, levels):
    """The true masks, shifted at random, some left out, some twice, of few different scores."""
    rng = np.random.default_rng(0)
    rows = []
    for image in coco.images:
        true = [mask for mask in truth_masks(coco, image) if rng.random() < 0.8]
        shifts = rng.integers(-9, 10, (2 * len(true), 2)).tolist()
        moved = [np.roll(mask, s, (0, 1)) for mask, s in zip(true + true, shifts, strict=True)]
        masks = np.stack(moved) if moved else np.zeros((0, 240, 240), dtype=bool)
        scores = rng.integers(1, levels + 1, len(masks)) / levels
        rows += predictions(image["id"], masks, scores.tolist())
    return rows


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_precision_is_that_of_pycocotools_on_the_same_files(tmp_path, scenes, levels):
    coco = open_coco(scenes)
    rows = guesses(coco, levels)
    coco.truth["annotations"][0]["iscrowd"] = 1
    found = average_precision(coco.truth, rows)
    for kind, name in [("bbox", "box"), ("segm", "mask")]:
        expected = stats_of(tmp_path, one_class(coco.truth), rows, kind)
        assert found[name] == expected
        assert 0.05 < found[name]["AP"] < found[name]["AP50"] < 1
    assert all(row["category_id"] == 1 for row in rows)


def square(y, x, side=10):
    mask = np.zeros((60, 60), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def two_squares():
    rows = []
    for i, mask in enumerate([square(5, 5), square(30, 30)], start=1):
        box = {"bbox": [[5, 5, 10, 10], [30, 30, 10, 10]][i - 1], "area": 100, "iscrowd": 0}
        polygon = [[c for x, y in corners(mask) for c in (x, y)]]
        rows.append({"id": i, "image_id": 7, "category_id": i, "segmentation": polygon} | box)
    images = [{"id": 7, "file_name": "a.png", "width": 60, "height": 60}]
    return {"images": images, "annotations": rows, "categories": [{"id": 1}, {"id": 2}]}


def corners(mask):
    ys, xs = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    top, bottom, left, right = map(int, (ys[0], ys[-1] + 1, xs[0], xs[-1] + 1))
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_precision_by_hand_and_ties_in_the_order_of_the_file():
    """Found, missed, found: precision 1 up to a recall of 1/2, and 2/3 to the end, at 101 points.

    Both objects count, though they are of two categories.
    """
    truth = two_squares()
    hit, miss, other = square(5, 5), square(5, 40), square(30, 30)
    found = average_precision(truth, predictions(7, np.stack([hit, miss, other])))
    expected = (51 + 50 * 2 / 3) / 101
    for kind in ("box", "mask"):
        assert found[kind] == pytest.approx({"AP": expected, "AP50": expected, "AP75": expected})
    last = average_precision(truth, predictions(7, np.stack([hit, other, miss])))
    assert last["mask"]["AP"] == pytest.approx(1)
    # 7 of 10 columns of the box are common: an IoU of 70 / 130, below 0.75 and 0.55.
    shifted = average_precision(truth, predictions(7, np.stack([square(5, 8), other])))
    half = (51 + 50) / 101 / 10 + 9 * (51 / 2) / 101 / 10
    assert shifted["mask"]["AP50"] == pytest.approx(1)
    assert shifted["mask"]["AP75"] == pytest.approx(51 / 2 / 101)
    assert shifted["box"]["AP"] == pytest.approx(half)


def test_annotations_and_predictions_are_left_as_they_are():
    truth, rows = two_squares(), predictions(7, np.stack([square(5, 5)]))
    before = json.dumps([truth, rows])
    average_precision(truth, rows)
    assert json.dumps([truth, rows]) == before


def test_finding_nothing_is_zero_and_other_mismatches_have_names():
    truth = two_squares()
    assert average_precision(truth, [])["mask"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with pytest.raises(ValueError, match="image 9, which is not in the truth"):
        average_precision(truth, predictions(9, square(0, 0)[None]))
    for row in truth["annotations"]:
        row["iscrowd"] = 1
    with pytest.raises(ValueError, match="nothing is annotated"):
        average_precision(truth, [])


def test_without_pycocotools_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'vitrail\[coco\]'"):
        predictions(1, square(0, 0)[None])


def test_true_masks_come_back_from_the_file(scenes):
    coco = open_coco(scenes)
    for index, image in enumerate(coco.images):
        scene = make_scene(index)
        np.testing.assert_array_equal(truth_masks(coco, image), scene.masks)
        np.testing.assert_array_equal(coco.read(image, 3).numpy(), scene.image)


def test_ideal_features_find_the_objects(scenes):
    """The pipeline is right, whatever the encoder is worth: AP50 of at least 90 %."""
    coco = open_coco(scenes)
    rows = []
    for index, image in enumerate(coco.images):
        keys = torch.from_numpy(ideal_features(make_scene(index), 30, noise=1.5, seed=index))
        seen = np.zeros((240, 240, 3), dtype=np.uint8)
        rows += predictions(image["id"], to_image(discover(keys, 0.15, 3), seen, (240, 240)))
    found = average_precision(coco.truth, rows)
    assert min(found["box"]["AP50"], found["mask"]["AP50"]) >= 0.9


def test_from_images_to_predictions_and_their_precision(tmp_path, scenes, hues):
    coco = open_coco(scenes)
    out = tmp_path / "new" / "predictions.json"
    config = MaskCut(tau=0.9, size=240)
    result = evaluate_maskcut(hues, coco, out, config)
    rows = json.loads(out.read_text())
    assert (result["images"], result["unreadable"]) == (SCENES, 0)
    assert result["predictions"] == len(rows)
    assert result["mask"] == stats_of(tmp_path, one_class(coco.truth), rows, "segm")
    assert result["mask"]["AP50"] > 0.9
    first = out.read_bytes()
    evaluate_maskcut(hues, coco, out, config)
    assert out.read_bytes() == first


def test_a_damaged_image_is_passed_over_and_its_objects_missed(tmp_path, hues):
    write_scenes(tmp_path / "s", 2)
    config = MaskCut(tau=0.9, size=240)
    coco = open_coco(tmp_path / "s")
    whole = evaluate_maskcut(hues, coco, tmp_path / "p.json", config)
    (tmp_path / "s/images/000002.png").write_bytes(b"no image")
    result = evaluate_maskcut(hues, coco, tmp_path / "p.json", config)
    assert result["unreadable"] == 1
    assert result["mask"]["AP50"] < whole["mask"]["AP50"]
    Image.new("RGB", (240, 200)).save(tmp_path / "s/images/000001.png")
    with pytest.raises(BadSampleError, match="has 240 x 200 pixels, its annotations are for"):
        coco.read(coco.images[0], 3)
    with pytest.raises(ValueError, match="none of the images can be read; the first: 000001"):
        evaluate_maskcut(hues, coco, tmp_path / "p.json", config)


def test_the_first_images_come_with_their_annotations(scenes):
    coco = open_coco(scenes)
    few = coco.first(3)
    assert [image["id"] for image in few.images] == [1, 2, 3]
    objects = sum(len(make_scene(i).masks) for i in range(3))
    assert len(few.truth["annotations"]) == objects < len(coco.truth["annotations"])


IMAGE = {"id": 1, "file_name": "a.png", "width": 4, "height": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold COCO's"),
        ("[]", "does not hold COCO's"),
        ({"images": [IMAGE]}, "does not hold COCO's"),
        ({"images": [{"id": 1}], "annotations": []}, "does not hold COCO's"),
        ({"images": [], "annotations": []}, "lists no images"),
        ({"images": [IMAGE, IMAGE], "annotations": []}, "two images of one id"),
        ({"images": [IMAGE], "annotations": [{"image_id": 2}]}, "the image_id 2, of no image"),
        ({"images": [IMAGE | {"width": 10**9}], "annotations": []}, "more than the limit"),
        ('{"images": ' + "[" * 100_000, "does not hold COCO's"),
        ('{"images": [], "annotations": ' + "9" * 5000 + "}", "does not hold COCO's"),
        ({"images": [IMAGE | {"width": 0}], "annotations": []}, "the size"),
        ({"images": [IMAGE | {"file_name": "../a.png"}], "annotations": []}, "outside"),
        ({"images": [IMAGE | {"file_name": "/etc/passwd"}], "annotations": []}, "outside"),
        ({"images": [IMAGE | {"file_name": "..\\a.png"}], "annotations": []}, "outside"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_coco(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*x\.json"):
        open_coco(tmp_path, "x.json")


FAR = [[0, 0, 1e8, 0, 1e8, 1e8]]
LONG = [[0, 0] + [240, 200, 0, 0] * 10_000]
TOO_MANY = {"size": [240, 240], "counts": [10**9, 10**9]}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bbox", [1, 2], "instead of"),
        ("bbox", "1234", "instead of"),
        ("bbox", [0, 0, math.nan, 1], "instead of"),
        ("bbox", [0, 0, 1e7, 1], "far outside"),
        ("iscrowd", "no", "iscrowd"),
        ("area", math.inf, "the area"),
        ("area", 10**4000, "the area"),
        ("segmentation", "zz", "neither polygons nor run lengths"),
        ("segmentation", [[1, 2]], "neither polygons nor run lengths"),
        ("segmentation", [[1, 2, math.nan, 4, 5, 6]], "neither polygons nor run lengths"),
        ("segmentation", FAR, "a polygon far outside"),
        ("segmentation", LONG, "outlines of"),
        ("segmentation", TOO_MANY, "no numbers of pixels"),
        ("segmentation", {"size": [10**6, 10**6], "counts": [10**12]}, "run lengths for"),
        ("segmentation", {"size": [240, 240], "counts": "zz~~"}, "no numbers of pixels"),
        ("segmentation", {"size": [240, 240], "counts": "11"}, "run lengths of 2 pixels"),
    ],
)
def test_a_damaged_object_is_left_out_by_name(tmp_path, field, value, words):
    write_scenes(tmp_path, 1)
    path = tmp_path / "annotations.json"
    truth = json.loads(path.read_text())
    truth["annotations"][0][field] = value
    path.write_text(json.dumps(truth))
    with pytest.warns(UserWarning, match=f"1 objects are left out: object 0.*{words}"):
        coco = open_coco(tmp_path)
    assert len(coco.truth["annotations"]) == len(truth["annotations"]) - 1
    assert len(coco.faults) == 1


def test_what_a_file_may_leave_out_is_filled_in(tmp_path):
    write_scenes(tmp_path, 2)
    path = tmp_path / "annotations.json"
    whole = open_coco(tmp_path)
    truth = json.loads(path.read_text())
    for row in truth["annotations"]:
        del row["iscrowd"], row["area"], row["id"]
    path.write_text(json.dumps(truth))
    found = predictions(whole.images[0]["id"], truth_masks(whole, whole.images[0]))
    sparse = open_coco(tmp_path)
    assert average_precision(sparse.truth, found) == average_precision(whole.truth, found)
    assert average_precision(sparse.truth, found)["box"]["AP"] > 0


def test_objects_with_boxes_alone_have_a_precision_of_boxes(tmp_path):
    write_scenes(tmp_path, 2)
    path = tmp_path / "annotations.json"
    whole = open_coco(tmp_path)
    truth = json.loads(path.read_text())
    for row in truth["annotations"]:
        del row["segmentation"]
    path.write_text(json.dumps(truth))
    boxes = open_coco(tmp_path)
    found = predictions(whole.images[0]["id"], truth_masks(whole, whole.images[0]))
    expected = average_precision(whole.truth, found)
    assert average_precision(boxes.truth, found) == {"box": expected["box"]}
    masks = truth_masks(boxes, boxes.images[0])
    width, height = boxes.truth["annotations"][0]["bbox"][2:]
    assert masks[0].sum() == width * height


def test_compressed_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for side in (1, 3, 40, 400):
        bits = np.asfortranarray(rng.random((side, side)) < 0.1, dtype=np.uint8)
        bits[:, : side // 2] = 0
        counts = decoded_lengths(mask.encode(bits)["counts"].decode(), side * side)
        assert sum(counts) == side * side
        ends = np.flatnonzero(np.diff(np.r_[0, bits.ravel("F")]))
        assert np.cumsum(counts)[:-1].tolist() == ends.tolist()
