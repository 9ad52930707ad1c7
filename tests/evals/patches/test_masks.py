import numpy as np
import pytest
import torch
from PIL import Image

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.data.contract import BadSampleError, Mask, Sample, Source
from vitrail.data.tools.scenes import Layout, make_scene
from vitrail.evals import evaluate as evaluation
from vitrail.evals.evaluate import evaluate
from vitrail.evals.patches import jaccard as masks
from vitrail.evals.patches.jaccard import jaccard_table, merged, saliency_jaccard

SIZE = 48


def write_scenes(root, count):
    """Scenes in VOC's layout, the second half for testing."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        scene = make_scene(i, layout=Layout(size=SIZE, gap=3))
        pixels = scene.image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{i}.jpg", quality=95)
        numbers = (scene.masks * np.arange(1, len(scene.masks) + 1)[:, None, None]).sum(0)
        mask = Image.fromarray(numbers.astype(np.uint8), mode="P")
        mask.putpalette([(7 * j) % 256 for j in range(768)])
        mask.save(root / "SegmentationClass" / f"{i}.png")
    for name, part in (("train", range(count // 2)), ("val", range(count // 2, count))):
        text = "\n".join(map(str, part))
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text(text)
    return root


class Scenes(Source):
    """Noise, a patch of which is marked; `marked` says what is wrong with each image's mask."""

    spec, channels, classes, masked = "scenes", 1, None, True

    def __init__(self, marked):
        self._marked = marked

    def __len__(self):
        return len(self._marked)

    def read(self, index, detail=None):
        if self._marked[index] == "unreadable":
            raise BadSampleError(self.id(index), "it is damaged")
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (1, 8, 8), generator=generator).to(torch.uint8)
        return Sample(image, None, None, self.id(index))

    def mask(self, index):
        if self._marked[index] == "none":
            return None
        side = 9 if self._marked[index] == "other size" else 8
        foreground = torch.zeros(side, side, dtype=torch.bool)
        ignored = foreground.clone()
        if self._marked[index] != "empty":
            foreground[:4, :4] = True
        ignored[:] = self._marked[index] == "ignored"
        return Mask(foreground, ignored)

    def id(self, index):
        return str(index)

    def label(self, index):
        return None

    def fingerprint(self):
        return "scenes"


@pytest.fixture
def run(tmp_path):
    tiny_encoder("digits", size=8).save(tmp_path / "run")
    return tmp_path / "run"


def test_voc_is_measured_by_default(tmp_path):
    encoder = tiny_encoder("voc", size=SIZE, channels=3)
    for p in encoder.backbone.parameters():  # other weights than the run began with
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    encoder.save(tmp_path / "run")
    data = f"voc:{write_scenes(tmp_path / 'voc', 40)}"
    results = evaluate(tmp_path / "run", data, out=tmp_path / "out", quiet=True)
    found = results["jaccard"]
    assert (found["images"], found["left_out"], found["size"]) == (20, 0, SIZE)
    for kind in ("untrained", "trained"):
        row = found[kind]
        assert len(row["heads"]) == 2
        assert row["best"] == pytest.approx(row["heads"][row["best_head"]], abs=1e-5)
        assert 0 < max(row["heads"]) == row["heads"][row["best_head"]] <= row["best_per_image"] < 1
    assert found["trained"] != found["untrained"]
    assert 0.05 < found["foreground"] < 0.5
    drawn = Image.open(tmp_path / "out" / results["figures"]["jaccard"])
    assert drawn.height == 4 * (masks.cell_side(SIZE) + 10) - 10


def test_a_map_of_the_truth_has_a_jaccard_of_one(run, tmp_path, monkeypatch):
    """The source marks the upper left quarter; so does head 1, and head 0 the rest."""
    truth = np.zeros((2, 2), dtype=np.float32)
    truth[0, 0] = 1

    def maps(encoder, pixels, protocol):
        assert pixels.shape[1:] == (1, 8, 8)
        return np.stack([np.stack([(1 - truth) / 3, truth])] * len(pixels))

    monkeypatch.setattr(masks, "pixel_maps", maps)
    source = Scenes([""] * 35)
    monkeypatch.setattr(evaluation, "open_splits", lambda *_: (source, source))
    found = evaluate(run, "scenes", ["jaccard"], out=tmp_path / "out", quiet=True)["jaccard"]
    assert found["images"] == 35
    assert found["trained"]["heads"] == [0, 1]
    assert (found["trained"]["best_head"], found["trained"]["best"]) == (1, 1)
    assert found["foreground"] == 1 / 4


def test_images_that_cannot_be_compared_are_left_out_and_counted(run, tmp_path, monkeypatch):
    source = Scenes(["", "empty", "unreadable", "none", "other size", "ignored", ""])
    monkeypatch.setattr(evaluation, "open_splits", lambda *_: (source, source))
    found = evaluate(run, "scenes", ["jaccard"], out=tmp_path / "out", quiet=True)["jaccard"]
    assert (found["images"], found["left_out"]) == (2, 5)


@pytest.mark.parametrize("marked", [[], ["empty"], ["unreadable", "none"]])
def test_nothing_to_compare_with_is_refused(run, tmp_path, monkeypatch, marked):
    source = Scenes(marked)
    monkeypatch.setattr(evaluation, "open_splits", lambda *_: (source, source))
    with pytest.raises(ValueError, match=r"none of its \d images has a mask"):
        evaluate(run, "scenes", ["jaccard"], out=tmp_path / "out", quiet=True)


def test_data_without_masks_and_too_small_a_size_are_refused(run):
    with pytest.raises(ValueError, match="jaccard: digits has no masks"):
        evaluate(run, "digits", ["jaccard"], quiet=True)


def test_the_size_is_a_setting(run, tmp_path, monkeypatch):
    source = Scenes([""] * 2)
    monkeypatch.setattr(evaluation, "open_splits", lambda *_: (source, source))
    sizes = {"image_size": 19}
    found = evaluate(run, "s", ["jaccard"], settings=sizes, out=tmp_path / "o", quiet=True)
    assert found["jaccard"]["size"] == 16
    with pytest.raises(ValueError, match="below one patch of 4"):
        evaluate(run, "s", ["jaccard"], settings={"image_size": 3}, out=tmp_path / "o", quiet=True)
    with pytest.raises(ValueError, match="image_size = 0"):
        evaluate(run, "s", ["jaccard"], settings={"image_size": 0}, quiet=True)


def test_parts_are_merged_to_the_mean_of_all_images():
    rng = np.random.default_rng(0)
    maps, truth = rng.random((5, 3, 4, 4)), [rng.random((8, 8)) < 0.4 for _ in range(5)]
    whole = saliency_jaccard(maps, truth)
    parts = merged([saliency_jaccard(maps[:2], truth[:2]), saliency_jaccard(maps[2:], truth[2:])])
    np.testing.assert_allclose(parts.heads, whole.heads, atol=2e-6)
    assert parts.best_head == whole.best_head
    assert parts.images == 5
    for name in ("best", "average", "best_per_image"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=2e-6)


def test_the_table_counts_heads_from_one():
    row = {"best": 0.5, "best_head": 1, "best_per_image": 0.6, "average": 0.4}
    table = jaccard_table({"trained": row, "untrained": row, "images": 3, "foreground": 0.2})
    assert list(table.columns[1].cells) == ["50.0 (head 2)"] * 2
