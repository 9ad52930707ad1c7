"""Tests of the table of sources, digits, Fashion-MNIST from IDX files, and folders."""

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail import registry
from vitrail.data.sources.datasets import fashion_mnist
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.registry import SOURCES, SourceRow, open_source, resolve_spec
from vitrail.data.sources.splits import choose_name, part_of
from vitrail.data.subset import Subset, hold_out
from vitrail.registry import resolve

PICTURE = Image.fromarray(np.full((6, 8, 3), 77, np.uint8))


def put(folder, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            PICTURE.save(file, "PNG")


def ids(source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def test_unknown_spec_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=f"in that folder write folder:{tmp_path}; "):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'imagenet'"):
        open_source("ImageNet:/x")
    assert resolve_spec("folder:,labels=x.csv") == "folder:,labels=x.csv"
    with pytest.raises(ValueError, match="'digit'; did you mean 'digits'"):
        open_source("digit")
    with pytest.raises(ValueError, match=r"fashion_mnist:/x'; did you mean 'fashion-mnist'"):
        open_source("fashion_mnist:/x")
    with pytest.raises(ValueError, match=r"unknown data 'qqq'; it is one of .*digits.*folder:DIR"):
        open_source("qqq")
    with pytest.raises(ValueError, match="split is 'valid'"):
        open_source("digits", "valid")
    published = {"cifar10", "cifar100", "coco", "flowers102", "imagenet", "pets", "stl10", "voc"}
    bundled, files = {"digits", "emoji", "fashion-mnist"}, {"folder", "npy", "npz", "pairs"}
    assert set(SOURCES) == published | bundled | files | {"hf", "parquet", "wds"}


def test_the_table_is_read_without_torch():
    code = (
        "import sys\n"
        "from vitrail.data.sources.registry import SOURCES, resolve_spec\n"
        "resolve_spec('digits')\n"
        "assert all(row.usage and row.summary for row in SOURCES.values())\n"
        "assert not {'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_row_names_a_function():
    for name, row in SOURCES.own.items():
        assert callable(resolve(row.open)), name
        assert row.usage.startswith(name)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_source_of_another_package(tmp_path, monkeypatch, as_text):
    def open_noise(rest, split, channels):
        images = torch.full((int(rest or 2), channels or 1, 4, 4), 9, dtype=torch.uint8)
        return MemorySource(f"noise:{rest}", images, None, None, channels)

    monkeypatch.setattr(fashion_mnist, "open_noise", open_noise, raising=False)
    monkeypatch.setattr(SOURCES, "_registered", {})
    reference = f"{fashion_mnist.__name__}:open_noise" if as_text else open_noise
    row = SourceRow(reference, "grey images", "noise[:N]")
    registry.register("source", "noise", row)
    source = open_source("noise:3", "test")
    assert (len(source), source.channels, source.label(0)) == (3, 1, None)
    assert resolve_spec("noise:3") == "noise:3"
    with pytest.raises(ValueError, match="did you mean 'noise'"):
        open_source("nois:3")
    with pytest.raises(ValueError, match="is there already"):
        registry.register("source", "digits", row)


def test_resolved_specs_mean_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_spec("folder:x/y") == f"folder:{tmp_path}/x/y"
    assert resolve_spec("pairs:~/t.csv") == "pairs:/home/someone/t.csv"
    assert resolve_spec("fashion-mnist:/far") == "fashion-mnist:/far"
    assert resolve_spec("emoji:fonts") == f"emoji:{tmp_path}/fonts"
    assert resolve_spec("emoji:subgroups:fonts") == f"emoji:subgroups:{tmp_path}/fonts"
    for spec in ("digits", "digits:scattered", "fashion-mnist", "emoji", "emoji:subgroups"):
        assert resolve_spec(spec) == spec, "no path"
    assert resolve_spec("unknown:x") == "unknown:x"


# ---- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert train.channels == 1
    assert train.classes == tuple("0123456789")
    whole = torch.cat([train.pixels(), test.pixels()]).flatten(1)
    exact = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, 64)
    assert sorted(map(bytes, whole.numpy())) == sorted(map(bytes, exact))
    counts = np.bincount([test.label(i) for i in range(500)])
    assert counts.min() >= 48
    assert counts.max() <= 52
    sample = train.read(5)
    assert torch.equal(sample.image, train.pixels()[5])
    assert (sample.label, sample.id, sample.text) == (train.label(5), "5", None)


def test_scattered_digits():
    train, test = open_source("digits:scattered"), open_source("digits:scattered", "test")
    plain = open_source("digits")
    assert train.pixels().shape == (1297, 1, 16, 16)
    assert len(test) == 500
    labels = [train.label(i) for i in range(1297)]
    assert labels == [plain.label(i) for i in range(1297)]
    assert train.fingerprint() == open_source("digits:scattered").fingerprint()
    lit = train.pixels()[:, 0] > 0
    top = lit.any(2).int().argmax(1)
    height = lit.any(2).sum(1)
    assert height.min() >= 7  # a digit fills nearly its whole side
    assert height.max() <= 14
    assert top.min() <= 1
    assert top.double().std() > 1
    # Scale and place are independent of the label: the classes' mean tops are close.
    means = torch.stack([top[torch.tensor(labels) == c].double().mean() for c in range(10)])
    assert means.std() < 3 * top.double().std() / 130**0.5
    with pytest.raises(ValueError, match="digits:shuffled is unknown"):
        open_source("digits:shuffled")


def test_channels_of_sources_in_memory():
    grey, rgb = open_source("digits"), open_source("digits", channels=3)
    assert rgb.channels == 3
    assert torch.equal(rgb.pixels(), grey.pixels().expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="channels is 2, but its images have 1"):
        open_source("digits", channels=2)


# ---- Fashion-MNIST


def zipped(data: bytes) -> bytes:
    """Compresses without the time of day, which would be in the names of tests."""
    return gzip.compress(data, mtime=0)


def idx(*shape: int, data: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


def put_fashion(folder, n_train: int = 20, n_test: int = 10) -> None:
    generator = np.random.default_rng(0)
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        images = generator.integers(0, 256, n * 784, dtype=np.uint8).tobytes()
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(zipped(idx(n, 28, 28, data=images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(zipped(idx(n, data=labels)))


def test_fashion_mnist_from_files(tmp_path):
    put_fashion(tmp_path)
    source = open_source(f"fashion-mnist:{tmp_path}")
    assert source.pixels().shape == (20, 1, 28, 28)
    first = np.random.default_rng(0).integers(0, 256, 20 * 784, dtype=np.uint8)[:784]
    assert torch.equal(source.read(0).image.flatten(), torch.from_numpy(first))
    assert [source.label(i) for i in (0, 9, 13)] == [0, 9, 3]
    assert source.classes[9] == "Ankle boot"
    assert len(open_source(f"fashion-mnist:{tmp_path}", "test")) == 10


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, None, "there is no file"),
        (IMAGES, b"not gzip", "cannot be read"),
        (IMAGES, zipped(idx(20, 28, 28, data=bytes(784 * 20)))[:40], "cannot be read"),
        (IMAGES, b"", "starts with"),
        (IMAGES, zipped(idx(20, data=bytes(20))), "starts with 00000801, not 00000803"),
        (IMAGES, zipped(idx(20, 28, 28, data=bytes(9), kind=13)), "starts with 00000d03"),
        (IMAGES, zipped(idx(20, 28, 28, data=bytes(784 * 19))), "header promises"),
        (IMAGES, zipped(idx(20, 28, 28, data=bytes(784 * 21))), "header promises"),
        (IMAGES, zipped(idx(0, 28, 28, data=b"")), "promises none"),
        (IMAGES, zipped(idx(2**31, 2**31, 9, data=bytes(9))), "header promises"),
        (IMAGES, zipped(idx(20, 28, 28, data=b"")[:9]), "header promises"),
        (LABELS, zipped(idx(19, data=bytes(19))), "19 labels for 20 images"),
        (LABELS, zipped(idx(20, data=bytes([10] * 20))), "in 0..9"),
    ],
)
def test_fashion_mnist_names_what_is_wrong(tmp_path, name, content, message):
    put_fashion(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(f"fashion-mnist:{tmp_path}")
    assert name in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_fashion_mnist_without_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no folder"):
        open_source(f"fashion-mnist:{tmp_path / 'none'}")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ValueError, match=r"download failed \(no network\).*fashion-mnist:DIR"):
        open_source("fashion-mnist")


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist not installed")
def test_fashion_mnist_of_debian():
    train, test = open_source("fashion-mnist"), open_source("fashion-mnist", "test")
    assert train.pixels().shape == (60000, 1, 28, 28)
    assert len(test) == 10000
    assert np.bincount([train.label(i) for i in range(60000)]).tolist() == [6000] * 10
    assert abs(train.pixels()[::10].float().mean() / 255 - 0.286) < 0.003  # known mean 0.2860


# ---- folders


def test_flat_folder(tmp_path):
    put(tmp_path, "b.png", "a.JPEG", ".hidden.png", "c.txt", "d.Tiff", "e.webp.part")
    source = open_source(f"folder:{tmp_path}")
    assert ids(source) == ["a.JPEG", "b.png", "d.Tiff"]
    assert source.classes is None
    assert source.label(0) is None
    assert source.channels == 3
    assert source.pixels() is None
    sample = source.read(1)
    assert sample.image.shape == (3, 6, 8)
    assert (sample.id, sample.label) == ("b.png", None)
    assert open_source(f"folder:{tmp_path}", channels=1).read(0).image.shape == (1, 6, 8)


def test_nested_folder_and_labels(tmp_path):
    put(tmp_path, "dog/x/1.png", "cat/2.png", "dog/0.png", ".git/3.png")
    source = open_source(f"folder:{tmp_path}")
    assert ids(source) == ["cat/2.png", "dog/0.png", "dog/x/1.png"]
    assert source.classes == ["cat", "dog"]
    assert [source.label(i) for i in range(3)] == [0, 1, 1]
    put(tmp_path, "loose.png")
    assert open_source(f"folder:{tmp_path}").classes is None, "one image is in no class"


def test_one_subfolder_is_no_label(tmp_path):
    put(tmp_path, "all/1.png", "all/2.png")
    assert open_source(f"folder:{tmp_path}").classes is None


def test_splits(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png", "extra/4.png")
    train, test = (open_source(f"folder:{tmp_path}", s) for s in ("train", "test"))
    assert ids(train) == ["train/a/1.png", "train/b/2.png"]
    assert ids(test) == ["val/b/3.png"]
    assert test.label(0) == 1, "numbers are those of the training classes"
    assert test.classes == train.classes == ["a", "b"]
    put(tmp_path, "test/c/5.png", "test/a/6.png")
    with pytest.raises(ValueError, match="'test' holds the class 'c', which 'train' lacks"):
        open_source(f"folder:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "VAL"), ("training", "validation"), ("TRAIN", "dev"), ("train", "Eval")],
)
def test_splits_by_other_words(tmp_path, train, test):
    put(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/b/3.png")
    first, second = (open_source(f"folder:{tmp_path}", s) for s in ("train", "test"))
    assert ids(first) == [f"{train}/a/1.png", f"{train}/b/2.png"]
    assert (ids(second), second.label(0)) == ([f"{test}/b/3.png"], 1)
    put(tmp_path, f"{test}/z/4.png")
    with pytest.raises(ValueError, match=f"'z', which '{train}' lacks"):
        open_source(f"folder:{tmp_path}", "test")


def test_two_folders_of_one_split_are_refused(tmp_path):
    put(tmp_path, "Train/1.png", "train/2.png", "test/3.png", "val/4.png", "dev/5.png")
    with pytest.raises(ValueError, match=r"'Train' and 'train' of .* both stand for 'train'"):
        open_source(f"folder:{tmp_path}", "test")
    (tmp_path / "Train/1.png").unlink()
    (tmp_path / "Train").rmdir()
    assert ids(open_source(f"folder:{tmp_path}", "test")) == ["test/3.png"]


def test_a_link_to_itself_with_the_name_of_a_split_is_no_split(tmp_path):
    put(tmp_path, "train/1.png", "test/2.png")
    os.symlink("val", tmp_path / "val")
    os.symlink("other", tmp_path / "other")
    assert ids(open_source(f"folder:{tmp_path}", "train")) == ["train/1.png"]
    assert ids(open_source(f"folder:{tmp_path}", "test")) == ["test/2.png"]


def test_words_of_splits():
    assert [part_of(word) for word in (" Training", "EVAL", "dev", "train2", None, 3)] == [
        *("train", "test", "val"),
        *(None, None, None),
    ]
    assert choose_name(["validation", "Dev", "Train"], "test") == "validation"
    assert choose_name(["validation", "Dev", "Train"], "train") == "Train"
    assert choose_name(["validation"], "train") is None


def test_train_folder_alone_is_no_split(tmp_path):
    put(tmp_path, "train/1.png", "other/2.png")
    assert len(open_source(f"folder:{tmp_path}")) == 2
    with pytest.raises(ValueError, match=r"no test split.*hold_out"):
        open_source(f"folder:{tmp_path}", "test")


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        open_source(f"folder:{tmp_path}/nowhere")
    put(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a file"):
        open_source(f"folder:{tmp_path}/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no images in .*empty.*\.jpg"):
        open_source(f"folder:{tmp_path}/empty")
    with pytest.raises(ValueError, match="write folder:DIR"):
        open_source("folder:")
    with pytest.raises(ValueError, match=r"channels is 5; .*\.npy"):
        open_source(f"folder:{tmp_path}", channels=5)


def test_odd_file_names(tmp_path):
    odd = ["quo\"te'.png", "new\nline.png", "<script>alert(1)<_script>.png", "žluťoučký 图.png"]
    put(tmp_path, *odd, b"bad\xff\xfebytes.png", "spa ce.png")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 6
    for i in range(6):
        assert source.read(i).id == source.id(i)
        assert json.loads(json.dumps(source.id(i))) == source.id(i)
    assert {os.fsencode(id) for id in ids(source)} >= {b"bad\xff\xfebytes.png"}
    assert source.fingerprint()


def test_links(tmp_path):
    put(tmp_path / "far", "deep/1.png")
    put(tmp_path / "near", "2.png")
    os.symlink(tmp_path / "far", tmp_path / "near" / "linked")
    os.symlink(tmp_path / "near", tmp_path / "near" / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "near" / "dangling.png")
    source = open_source(f"folder:{tmp_path}/near")
    assert ids(source) == ["2.png", "dangling.png", "linked/deep/1.png"]


def test_unlistable_folder_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png")
    listing = os.scandir

    def forbidden(path):
        if os.fsdecode(path).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(ValueError, match="a cannot be listed"):
        open_source(f"folder:{tmp_path}")


def test_fingerprints(tmp_path):
    put(tmp_path, "a.png", "b.png")
    before = open_source(f"folder:{tmp_path}").fingerprint()
    os.utime(tmp_path / "a.png", (1, 1))
    assert open_source(f"folder:{tmp_path}").fingerprint() == before
    put(tmp_path, "c.png")
    assert open_source(f"folder:{tmp_path}").fingerprint() != before
    (tmp_path / "c.png").unlink()
    (tmp_path / "a.png").write_bytes(b"other")
    assert open_source(f"folder:{tmp_path}").fingerprint() != before
    prints = {open_source("digits", s).fingerprint() for s in ("train", "test")}
    assert len(prints | {open_source("digits", channels=3).fingerprint()}) == 3


def test_sources_cross_processes(tmp_path):
    put(tmp_path, "a/1.png", "b/2.png")
    for spec in ("digits", f"folder:{tmp_path}"):
        source = open_source(spec)
        copy = pickle.loads(pickle.dumps(source))
        assert copy.fingerprint() == source.fingerprint()
        assert torch.equal(copy.read(1).image, source.read(1).image)


# ---- subsets


def test_subset():
    source = open_source("digits")
    subset = Subset(source, [5, 3, 8])
    assert len(subset) == 3
    assert torch.equal(subset.pixels(), source.pixels()[[5, 3, 8]])
    assert (subset.id(1), subset.label(1)) == ("3", source.label(3))
    assert torch.equal(subset.read(2).image, source.read(8).image)
    assert subset.fingerprint() != Subset(source, [3, 5, 8]).fingerprint()
    assert (subset.spec, subset.channels, subset.classes) == ("digits", 1, source.classes)


def test_hold_out_is_stratified_and_deterministic():
    source = open_source("digits")
    train, test = hold_out(source, 0.25, seed=3)
    assert sorted(ids(train) + ids(test), key=int) == ids(source)
    of = lambda s: np.bincount([s.label(i) for i in range(len(s))])  # noqa: E731
    assert np.abs(of(test) - 0.25 * of(source)).max() <= 0.5
    assert ids(hold_out(source, 0.25, seed=3)[1]) == ids(test)
    assert ids(hold_out(source, 0.25, seed=4)[1]) != ids(test)


def test_hold_out_of_unlabelled_folder(tmp_path):
    put(tmp_path, *(f"{i}.png" for i in range(10)))
    train, test = hold_out(open_source(f"folder:{tmp_path}"))
    assert (len(train), len(test)) == (8, 2)
    assert train.read(0).image.shape == (3, 6, 8)
    with pytest.raises(ValueError, match=r"fraction 0\.01 of the 10 samples"):
        hold_out(train._source, 0.01)
    with pytest.raises(ValueError, match=r"fraction is 1"):
        hold_out(train, 1.0)
