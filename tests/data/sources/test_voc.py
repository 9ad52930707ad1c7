import numpy as np
import pytest
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.sources.registry import open_source, resolve_spec
from vitrail.data.subset import Subset


def write_voc(root, names, val=None):
    """Writes images of noise; the top half of each is class 3, its last column undecided."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in names:
        pixels = rng.integers(256, size=(8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        classes = np.zeros((8, 12), dtype=np.uint8)
        classes[:4], classes[:, -1] = 3, 255
        mask = Image.fromarray(classes, mode="P")
        mask.putpalette([(7 * i) % 256 for i in range(768)])
        mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("\n".join(names) + "\n")
    if val is not None:
        (lists / "val.txt").write_text("\n".join(val))
    return root


def test_images_and_masks_by_the_lists(tmp_path):
    write_voc(tmp_path / "VOCdevkit/VOC2012", ["2007_000001", "2007_000002"], val=["2007_000002"])
    train, test = (open_source(f"voc:{tmp_path}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert test.id(0) == "2007_000002"
    assert test.masked
    assert test.classes is None
    assert test.label(0) is None
    assert test.read(0).image.shape == (3, 8, 12)
    foreground, ignored = test.mask(0)
    assert foreground.sum() == 4 * 11
    assert foreground[:4, :-1].all()
    assert ignored.sum() == 8
    assert ignored[:, -1].all()
    assert Subset(train, [1]).mask(0).foreground.equal(foreground)
    assert Subset(train, [1]).masked
    assert train.fingerprint() != test.fingerprint()
    assert open_source(f"voc:{tmp_path}", "test", channels=1).read(0).image.shape == (1, 8, 12)


def test_the_spec_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_spec("voc:sub") == f"voc:{tmp_path / 'sub'}"


def test_other_sources_have_no_masks():
    digits = open_source("digits")
    assert not digits.masked
    assert digits.mask(0) is None


def test_without_val_there_is_no_test_split(tmp_path):
    write_voc(tmp_path / "voc", ["a"])
    with pytest.raises(NoTestSplitError, match=r"val\.txt"):
        open_source(f"voc:{tmp_path / 'voc'}", "test")


@pytest.mark.parametrize("damage", ["colours", "missing", "garbage"])
def test_a_mask_that_is_none_is_named(tmp_path, damage):
    write_voc(tmp_path, ["a"])
    path = tmp_path / "SegmentationClass/a.png"
    if damage == "colours":
        Image.new("RGB", (12, 8)).save(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no")
    with pytest.raises(BadSampleError, match=r"a \(its mask\)"):
        open_source(f"voc:{tmp_path}").mask(0)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a/b", "a b", "-x"])
def test_a_list_names_nothing_outside(tmp_path, name):
    write_voc(tmp_path, ["a"], val=["a", name])
    with pytest.raises(ValueError, match=r"number 2\), which is not the name"):
        open_source(f"voc:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("spec", "message"),
    [("voc:", "names no folder"), ("voc:/nowhere", "there is no folder .*JPEGImages")],
)
def test_a_folder_that_is_none(spec, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec)


def test_an_empty_list_and_other_channels(tmp_path):
    write_voc(tmp_path, ["a"], val=[])
    with pytest.raises(ValueError, match="names no images"):
        open_source(f"voc:{tmp_path}", "test")
    with pytest.raises(ValueError, match="channels is 4"):
        open_source(f"voc:{tmp_path}", channels=4)
