"""Tests of small CIFAR, STL-10, Flowers 102, Pets, ImageNet and COCO against torchvision."""

import json
import pickle
import struct
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.sources.formats import mapped
from vitrail.data.sources.registry import open_source, resolve_spec

RNG = np.random.default_rng(11)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (14, 11)) -> np.ndarray:
    """Writes a JPEG of noise; returns its decoded pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return np.asarray(Image.open(path).convert("RGB"))


def same(source, index: int, image, label: int | None) -> None:
    """Asserts that a sample is torchvision's: a PIL image and a class."""
    sample = source.read(index)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(sample.image.numpy(), expected)
    assert sample.label == label == source.label(index)


# ---- CIFAR


class Python2(pickle._Pickler):
    """Pickles texts and bytes as Python 2 did for CIFAR."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _string(self, text) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        short = len(content) < 256
        head = b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        self.write(head + content)
        self.memoize(text)

    dispatch[str] = _string
    dispatch[bytes] = _string


def dump(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        Python2(file, protocol=2).dump(content)


def write_cifar(root: Path, kind: str, version: str) -> None:
    """Writes batches of three images."""
    tens = kind == "cifar10"
    classes = 10 if tens else 100
    names = [f"class {i}" for i in range(classes)]
    rng = np.random.default_rng(classes)
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if tens else ["train", "test"]
    folder = (
        root
        / {
            "cifar10py": "cifar-10-batches-py",
            "cifar10bin": "cifar-10-batches-bin",
            "cifar100py": "cifar-100-python",
            "cifar100bin": "cifar-100-binary",
        }[kind + version]
    )
    folder.mkdir(parents=True)
    for name in files:
        pixels = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, 3).tolist()
        coarse = rng.integers(0, 20, 3).tolist()
        if version == "py":
            own = {"labels": labels} if tens else {"fine_labels": labels, "coarse_labels": coarse}
            filenames = [f"labels_{i}.png" for i in range(3)]
            content = {"batch_label": name, **own, "data": pixels, "filenames": filenames}
            dump(folder / name, content)
        else:
            heads = np.array([labels]) if tens else np.array([coarse, labels])
            rows = np.concatenate([heads.T.astype(np.uint8), pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
    if version == "py":
        key = "label_names" if tens else "fine_label_names"
        meta = {"num_cases_per_batch": 3, key: names, "num_vis": 3072}
        dump(folder / ("batches.meta" if tens else "meta"), meta)
    else:
        listed = folder / ("batches.meta.txt" if tens else "fine_label_names.txt")
        listed.write_text("\n".join(names) + "\n\n")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_is_torchvisions_from_either_archive(tmp_path, kind, monkeypatch):
    from torchvision import datasets

    write_cifar(tmp_path / "py", kind, "py")
    write_cifar(tmp_path / "bin", kind, "bin")
    known = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    monkeypatch.setattr(known, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for split in ("train", "test"):
        theirs = known(str(tmp_path / "py"), train=split == "train")
        sources = [open_source(f"{kind}:{tmp_path}/{v}", split) for v in ("py", "bin")]
        inside = next((tmp_path / "bin").iterdir())
        sources.append(open_source(f"{kind}:{inside}", split))
        for source in sources:
            assert len(source) == len(theirs) == (15 if kind + split == "cifar10train" else 3)
            assert list(source.classes) == theirs.classes
            for i in range(len(source)):
                same(source, i, *theirs[i])
        assert len({source.fingerprint() for source in sources}) == 1
    grey = pytest.raises(ValueError, match="channels is 1, but its images have 3")
    with grey:
        open_source(f"{kind}:{tmp_path}/py", channels=1)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_cifar_is_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, "cifar100", "py")
    train = tmp_path / "cifar-100-python/train"
    pixels = np.zeros((2, 3072), np.uint8)
    content = {"harm": Harm(), "data": pixels, "fine_labels": [1, 2]}
    with open(train, "wb") as file:
        Python2(file, protocol=2).dump(content)
    source = open_source("cifar100:.")
    assert [source.label(i) for i in range(2)] == [1, 2]
    assert not Path("harm").exists()
    train.write_bytes(pickle.dumps({"data": pixels, "fine_labels": [1, 2]}))
    with pytest.raises(ValueError, match=r"train is no batch .*download the binary version"):
        open_source("cifar100:.")
    turned = {"data": np.asfortranarray(pixels), "fine_labels": [1, 2]}
    dump(train, turned)
    with pytest.raises(ValueError, match="train is no batch"):
        open_source("cifar100:.")
    train.write_bytes(train.read_bytes()[:100])
    with pytest.raises(ValueError, match="train is no batch"):
        open_source("cifar100:.")


def test_cifar_that_is_missing_or_damaged_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz, from https://www.cs.toronto"):
        open_source(f"cifar10:{tmp_path}")
    with pytest.raises(ValueError, match="cifar10: names no folder"):
        open_source("cifar10")
    python = tmp_path / "python"
    python.mkdir()
    write_cifar(python, "cifar10", "py")
    (python / "cifar-10-batches-py/batches.meta").write_bytes(b"\x99")
    with pytest.raises(ValueError, match=r"^cifar10:.*batches.meta is damaged .*; download"):
        open_source(f"cifar10:{python}")
    write_cifar(tmp_path, "cifar10", "bin")
    batch = tmp_path / "cifar-10-batches-bin/data_batch_3.bin"
    rows = bytearray(batch.read_bytes())
    batch.write_bytes(rows[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin is no batch .*not rows of 3073"):
        open_source(f"cifar10:{tmp_path}")
    rows[0] = 10
    batch.write_bytes(rows)
    with pytest.raises(ValueError, match="a label 10, of 10 classes"):
        open_source(f"cifar10:{tmp_path}")
    batch.unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin cannot be read"):
        open_source(f"cifar10:{tmp_path}")


# ---- STL-10


@pytest.fixture
def stl10(tmp_path) -> Path:
    root = tmp_path / "stl10_binary"
    root.mkdir()
    for part, count in (("train", 4), ("test", 3), ("unlabeled", 5)):
        RNG.integers(0, 256, count * 27648, dtype=np.uint8).tofile(root / f"{part}_X.bin")
        if part != "unlabeled":
            RNG.integers(1, 11, count, dtype=np.uint8).tofile(root / f"{part}_y.bin")
    (root / "class_names.txt").write_text("".join(f"name{i}\n" for i in range(10)))
    return tmp_path


@pytest.mark.parametrize("limit", [0, 2**30])
def test_stl10_is_torchvisions(stl10, monkeypatch, limit):
    from torchvision.datasets import STL10

    monkeypatch.setattr(mapped, "IN_MEMORY", limit)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    for split in ("train", "test", "unlabeled"):
        theirs = STL10(str(stl10), split=split)
        spec = f"stl10:unlabeled:{stl10}" if split == "unlabeled" else f"stl10:{stl10}"
        source = open_source(spec, "train" if split == "unlabeled" else split)
        assert len(source) == len(theirs)
        assert (source.pixels() is None) == (limit == 0)
        for i, (image, label) in enumerate(theirs):
            same(source, i, image, None if split == "unlabeled" else int(label))
        assert source.classes == (None if split == "unlabeled" else tuple(theirs.classes))


def test_stl10_that_is_wrong_says_so(stl10, monkeypatch):
    with pytest.raises(NoTestSplitError, match="evaluate on stl10:"):
        open_source(f"stl10:unlabeled:{stl10}", "test")
    monkeypatch.chdir(stl10)
    assert resolve_spec("stl10:unlabeled:x") == f"stl10:unlabeled:{stl10}/x"
    root = stl10 / "stl10_binary"
    np.zeros(4, np.uint8).tofile(root / "train_y.bin")
    with pytest.raises(ValueError, match="other labels than 1 to 10"):
        open_source(f"stl10:{stl10}")
    np.ones(3, np.uint8).tofile(root / "train_y.bin")
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        open_source(f"stl10:{stl10}")
    (root / "train_X.bin").write_bytes(b"x" * 27649)
    with pytest.raises(ValueError, match="not images of 27,648; download stl10_binary"):
        open_source(f"stl10:{stl10}")
    with pytest.raises(ValueError, match=r"download stl10_binary.tar.gz"):
        open_source(f"stl10:{root}/none")


# ---- Flowers 102


@pytest.fixture
def flowers(tmp_path) -> Path:
    root = tmp_path / "flowers-102"
    for number in range(1, 8):
        picture(root / f"jpg/image_{number:05d}.jpg", number)
    scipy.io.savemat(root / "imagelabels.mat", {"labels": np.array([[5, 1, 102, 5, 7, 1, 9]])})
    sets = {"trnid": [[4, 1]], "valid": [[7, 2]], "tstid": [[3, 6, 5]]}
    scipy.io.savemat(root / "setid.mat", sets)
    return tmp_path


def test_flowers_are_torchvisions(flowers, monkeypatch):
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    parts = {"train": ("train", "val"), "test": ("test",)}
    for split, names in parts.items():
        source = open_source(f"flowers102:{flowers}", split)
        theirs = [Flowers102(str(flowers), split=name) for name in names]
        found = {
            str(p.name): (p, y)
            for t in theirs
            for p, y in zip(t._image_files, t._labels, strict=True)
        }
        assert len(source) == len(found)
        for i in range(len(source)):
            path, label = found[Path(source.id(i)).name]
            same(source, i, Image.open(path), label)
    assert source.metric == "mean_per_class"
    assert len(source.classes) == 102
    assert source.fingerprint() != open_source(f"flowers102:{flowers}").fingerprint()


def test_flowers_that_are_wrong_say_so(flowers):
    root = flowers / "flowers-102"
    scipy.io.savemat(root / "setid.mat", {"trnid": [[8]], "valid": [[1]], "tstid": [[1]]})
    with pytest.raises(ValueError, match="images other than the 7 that have labels"):
        open_source(f"flowers102:{flowers}")
    (root / "setid.mat").write_bytes(b"no matrix" * 30)
    with pytest.raises(ValueError, match="has no trnid that can be read"):
        open_source(f"flowers102:{flowers}")
    (root / "setid.mat").unlink()
    with pytest.raises(ValueError, match=r"setid.mat; download 102flowers.tgz"):
        open_source(f"flowers102:{root}")
    with pytest.raises(ValueError, match=r"there is no .*imagelabels.mat; download"):
        open_source(f"flowers102:{flowers}/jpg")
    scipy.io.savemat(root / "setid.mat", {"trnid": [[4]], "valid": [[1]], "tstid": [[1]]})
    with pytest.raises(ValueError, match="channels is 5"):
        open_source(f"flowers102:{flowers}", channels=5)


# ---- Pets


@pytest.fixture
def pets(tmp_path) -> Path:
    root = tmp_path / "oxford-iiit-pet"
    lists = {
        "trainval": [("Abyssinian_1", 1), ("american_bulldog_10", 2), ("Abyssinian_2", 1)],
        "test": [("american_bulldog_3", 2), ("Abyssinian_33", 1)],
    }
    for name, rows in lists.items():
        for at, (image, _) in enumerate(rows):
            picture(root / f"images/{image}.jpg", at + len(name))
            trimap = RNG.integers(1, 4, (14, 11), dtype=np.uint8)
            (root / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
            Image.fromarray(trimap).save(root / f"annotations/trimaps/{image}.png")
        lines = [f"{image} {label} 1 1\n" for image, label in rows]
        (root / f"annotations/{name}.txt").write_text("".join(lines))
    return tmp_path


def test_pets_are_torchvisions(pets):
    from torchvision.datasets import OxfordIIITPet

    for split, name in (("train", "trainval"), ("test", "test")):
        theirs = OxfordIIITPet(str(pets), split=name)
        source = open_source(f"pets:{pets}", split)
        assert len(source) == len(theirs)
        for i, (image, label) in enumerate(theirs):
            same(source, i, image, label)
        assert list(source.classes) == theirs.classes == ["Abyssinian", "American Bulldog"]
        assert source.metric == "mean_per_class"
        trimaps = OxfordIIITPet(str(pets), split=name, target_types="segmentation")
        assert source.masked
        for i, (_, trimap) in enumerate(trimaps):
            mask = source.mask(i)
            np.testing.assert_array_equal(mask.foreground.numpy(), np.asarray(trimap) == 1)
            np.testing.assert_array_equal(mask.ignored.numpy(), np.asarray(trimap) == 3)


def test_pets_that_are_wrong_say_so(pets):
    listed = pets / "oxford-iiit-pet/annotations/trainval.txt"
    listed.write_text("../secret_1 1 1 1\n")
    with pytest.raises(ValueError, match=r"the line '../secret_1 1 1 1', not NAME CLASS"):
        open_source(f"pets:{pets}")
    listed.write_text("Abyssinian_1 5 1 1\n")
    with pytest.raises(ValueError, match="classes of its lists are not 1 to 3"):
        open_source(f"pets:{pets}")
    listed.unlink()
    with pytest.raises(ValueError, match=r"download images.tar.gz and annotations.tar.gz"):
        open_source(f"pets:{pets}")


# ---- ImageNet


@pytest.fixture
def imagenet(tmp_path) -> Path:
    for split in ("train", "val"):
        for at, wnid in enumerate(("n01440764", "n02012849", "n03126707")):
            for k in range(2):
                picture(tmp_path / f"{split}/{wnid}/{split}_{at}_{k}.JPEG", at)
    names = {
        "n01440764": ("tench", "Tinca tinca"),
        "n02012849": ("crane",),
        "n03126707": ("crane", "hoist"),
    }
    torch.save((names, ["n01440764"]), tmp_path / "meta.bin")
    return tmp_path


def test_imagenet_is_torchvisions(imagenet):
    from torchvision.datasets import ImageNet

    for split, name in (("train", "train"), ("test", "val")):
        theirs = ImageNet(str(imagenet), split=name)
        source = open_source(f"imagenet:{imagenet}", split)
        assert len(source) == len(theirs) == 6
        assert source.spec == f"imagenet:{imagenet}"
        for i, (image, label) in enumerate(theirs):
            same(source, i, image, label)
        assert list(source.classes) == ["tench", "crane", "crane, hoist"]


def test_imagenet_in_kaggles_folders(imagenet, tmp_path_factory):
    kaggle = tmp_path_factory.mktemp("kaggle")
    (kaggle / "ILSVRC/Data").mkdir(parents=True)
    (imagenet / "meta.bin").unlink()
    imagenet.rename(kaggle / "ILSVRC/Data/CLS-LOC")
    lines = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane2, hoist\n"
    (kaggle / "LOC_synset_mapping.txt").write_text(lines)
    (kaggle / "ILSVRC/Data/CLS-LOC/test").mkdir()  # without classes
    (kaggle / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG").write_bytes(b"x")
    source = open_source(f"imagenet:{kaggle}", "test")
    assert list(source.classes) == ["tench", "crane", "crane2"]
    assert len(source) == 6
    assert all(source.id(i).startswith("val/") for i in range(6))
    for path in sorted((kaggle / "ILSVRC/Data/CLS-LOC/val").rglob("*.JPEG")):
        path.rename(path.parent.parent / path.name)
    for folder in (kaggle / "ILSVRC/Data/CLS-LOC/val").iterdir():
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(ValueError, match="are not in subfolders"):
        open_source(f"imagenet:{kaggle}", "test")


def test_imagenet_without_val_or_names(imagenet, tmp_path):
    import shutil

    (imagenet / "meta.bin").write_bytes(pickle.dumps((Harm(), [])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on a pickle that is not its own
        assert open_source(f"imagenet:{imagenet}").classes[0] == "n01440764"
    assert not Path("harm").exists()
    shutil.rmtree(imagenet / "val")
    assert len(open_source(f"imagenet:{imagenet}")) == 6
    with pytest.raises(NoTestSplitError, match=r"there is no .*val"):
        open_source(f"imagenet:{imagenet}", "test")
    with pytest.raises(ValueError, match="put ILSVRC2012"):
        open_source(f"imagenet:{imagenet}/train")


# ---- COCO


@pytest.fixture
def coco(tmp_path) -> Path:
    for split in ("train", "val"):
        for number in (9, 25, 30):
            picture(tmp_path / f"{split}2017/{number:012d}.jpg", number)
    mask_yx = np.zeros((14, 11), np.uint8)
    mask_yx[2:5, 3:9] = 1
    from pycocotools import mask as code

    packed = code.encode(np.asfortranarray(mask_yx))
    packed["counts"] = packed["counts"].decode()
    crowd = {"size": [14, 11], "counts": [0, 56, 98]}  # the first four columns
    rows = [
        {"id": 1, "image_id": 9, "iscrowd": 0, "segmentation": packed, "category_id": 3},
        {"id": 2, "image_id": 9, "iscrowd": 1, "segmentation": crowd, "category_id": 1},
        {"id": 3, "image_id": 9, "iscrowd": 0, "segmentation": [[5, 8, 9, 8, 9, 12, 5, 12]]},
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 14, "width": 11} for n in (9, 25)]
    path = tmp_path / "annotations/instances_val2017.json"
    path.parent.mkdir()
    rows[2]["category_id"] = 1
    content = {"images": images, "annotations": rows, "categories": [{"id": 1}, {"id": 3}]}
    path.write_text(json.dumps(content))
    return tmp_path


def test_coco_images_and_the_union_of_their_objects(coco):
    from pycocotools.coco import COCO

    train, test = (open_source(f"coco:{coco}", split) for split in ("train", "test"))
    assert (train.masked, test.masked) == (False, True)
    assert [test.id(i) for i in range(3)] == [f"val2017/{n:012d}.jpg" for n in (9, 25, 30)]
    same(train, 1, Image.open(coco / "train2017/000000000025.jpg"), None)
    assert train.mask(0) is None
    api = COCO(str(coco / "annotations/instances_val2017.json"))
    rows = api.loadAnns(api.getAnnIds(9))
    plain, crowd = (sum(api.annToMask(r) for r in rows if r["iscrowd"] == c) > 0 for c in (0, 1))
    mask = test.mask(0)
    np.testing.assert_array_equal(mask.foreground.numpy(), plain)
    np.testing.assert_array_equal(mask.ignored.numpy(), crowd & ~plain)
    assert mask.foreground.sum() > 18
    assert mask.ignored.any()
    assert not test.mask(1).foreground.any()
    assert test.mask(2) is None, "not annotated"
    assert len(pickle.dumps(test)) < 2000


def test_coco_that_is_wrong_says_so(coco):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for shape in ({"size": [99, 11], "counts": [1]}, [[1, 2]], "x", None):
        content["annotations"][0]["segmentation"] = shape
        path.write_text(json.dumps(content))
        with pytest.raises(BadSampleError, match="not marked as COCO does"):
            open_source(f"coco:{coco}", "test").mask(0)
    path.write_text("{}")
    with pytest.raises(ValueError, match="does not hold COCO's images"):
        open_source(f"coco:{coco}", "test").mask(0)
    (coco / "val2017").rename(coco / "other")
    with pytest.raises(NoTestSplitError, match=r"there is no .*val2017"):
        open_source(f"coco:{coco}", "test")
    with pytest.raises(ValueError, match=r"download train2017.zip"):
        open_source(f"coco:{coco}/annotations")
