"""Tests of `npy:` and `npz:`: layouts, names, labels, worker processes, and refusals."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from vitrail.data.contract import NoTestSplitError
from vitrail.data.sources.formats import arrays, mapped
from vitrail.data.sources.formats.mapped import MappedSource
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.registry import open_source, resolve_spec
from vitrail.data.subset import Subset

RNG = np.random.default_rng(3)
NCHW = RNG.integers(0, 65536, (7, 5, 20, 18), dtype=np.uint16)
GREY = RNG.integers(0, 256, (7, 20, 18), dtype=np.uint8)


@pytest.fixture(params=["in memory", "mapped"])
def kind(request, monkeypatch) -> type:
    """Reads in memory and from a map, regardless of the size."""
    if request.param == "mapped":
        monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    return MappedSource if request.param == "mapped" else MemorySource


def stacked(source) -> np.ndarray:
    return np.stack([source.read(i).image.numpy() for i in range(len(source))])


@pytest.mark.parametrize(
    "array",
    [
        NCHW,
        np.ascontiguousarray(NCHW.transpose(0, 2, 3, 1)),
        np.asfortranarray(NCHW),
        NCHW.astype(">u2"),
        (NCHW >> 8).astype(np.uint8),
    ],
)
def test_npy_of_any_layout(tmp_path, kind, array):
    np.save(tmp_path / "x.npy", array)
    source = open_source(f"npy:{tmp_path}/x.npy", channels=5)
    assert type(source) is kind
    assert (source.channels, source.bits) == (5, array.dtype.itemsize * 8)
    expected = NCHW if source.bits == 16 else (NCHW >> 8).astype(np.uint8)
    np.testing.assert_array_equal(stacked(source), expected)
    assert (source.classes, source.label(3), source.id(3)) == (None, None, "3")
    assert source.read(3).label is None
    pixels = source.pixels()
    assert (pixels is None) == (kind is MappedSource)
    if pixels is not None:
        np.testing.assert_array_equal(pixels.numpy(), expected)


def test_grey_becomes_three_channels_and_subsets_keep_bits(tmp_path, kind):
    np.save(tmp_path / "x.npy", GREY)
    assert open_source(f"npy:{tmp_path}/x.npy").channels == 1
    source = open_source(f"npy:{tmp_path}/x.npy", channels=3)
    np.testing.assert_array_equal(stacked(source), np.repeat(GREY[:, None], 3, axis=1))
    np.save(tmp_path / "x.npy", NCHW)
    some = Subset(open_source(f"npy:{tmp_path}/x.npy", channels=5), [4, 2])
    assert some.bits == 16
    np.testing.assert_array_equal(stacked(some), NCHW[[4, 2]])


def test_labels_beside_it(tmp_path, kind):
    np.save(tmp_path / "x.npy", GREY)
    np.save(tmp_path / "y.npy", np.array([3, 1, -1, 3, 8, 1, 8]))
    source = open_source(f"npy:{tmp_path}/x.npy,labels=y.npy")
    assert source.classes == ("1", "3", "8")
    assert [source.label(i) for i in range(7)] == [1, 0, None, 1, 2, 0, 2]
    assert source.read(4).label == 2
    np.save(tmp_path / "y.npy", np.array([list("abcabca")]).T)
    source = open_source(f"npy:{tmp_path}/x.npy,labels={tmp_path}/y.npy")
    assert source.classes == ("a", "b", "c")
    assert source.label(5) == 2
    assert open_source(f"npy:{tmp_path}/x.npy,labels=none").classes is None
    for labels, words in [
        (np.arange(6), "6 labels for 7 images"),
        (np.zeros((7, 2), int), "one label an image"),
        (np.zeros(7), "its labels are float64"),
    ]:
        np.save(tmp_path / "y.npy", labels)
        with pytest.raises(ValueError, match=words):
            open_source(f"npy:{tmp_path}/x.npy,labels=y.npy")


def test_axes_that_cannot_be_told_are_asked_for(tmp_path, kind):
    spec = f"npy:{tmp_path}/x.npy"
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="say axes=NHWC or axes=NCHW"):
        open_source(spec)
    assert open_source(f"{spec},axes=NCHW").read(0).image.shape == (8, 8, 8)
    np.save(tmp_path / "x.npy", NCHW.transpose(2, 3, 1, 0))  # as MATLAB has them
    np.testing.assert_array_equal(stacked(open_source(f"{spec},axes=HWCN")), NCHW)
    np.save(tmp_path / "x.npy", np.zeros((20, 18, 3), np.uint8))
    with pytest.raises(ValueError, match="could be one image of 3 channels"):
        open_source(spec)
    assert len(open_source(f"{spec},axes=NHW")) == 20
    for axes in ("NHWC", "NHH", "nhw"):
        with pytest.raises(ValueError, match=f"axes={axes} does not fit"):
            open_source(f"{spec},axes={axes}")


def _checksums(source, indices, out) -> None:
    out.put([int(source.read(i).image.long().sum()) for i in indices])


def test_each_process_maps_it_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    np.save(tmp_path / "x.npy", NCHW)
    source = open_source(f"npy:{tmp_path}/x.npy")
    source.read(0)
    content = pickle.dumps(source)  # as for a process that is spawned
    assert len(content) < 2000, "the pixels do not travel"
    np.testing.assert_array_equal(stacked(pickle.loads(content)), NCHW)
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    worker = context.Process(target=_checksums, args=(source, [6, 0], out))
    worker.start()
    assert out.get(timeout=60) == [int(NCHW[6].sum()), int(NCHW[0].sum())]
    worker.join()


def test_fingerprint_is_of_content_labels_and_order(tmp_path, kind):
    def print_of(array, labels=None) -> str:
        np.save(tmp_path / "x.npy", array)
        option = ""
        if labels is not None:
            np.save(tmp_path / "y.npy", labels)
            option = ",labels=y.npy"
        return open_source(f"npy:{tmp_path}/x.npy{option}", channels=5).fingerprint()

    changed = NCHW.copy()
    changed[3, 2, 1, 0] ^= 1
    prints = [
        print_of(NCHW),
        print_of(NCHW[::-1]),
        print_of(changed),
        print_of(NCHW[:-1]),
        print_of(NCHW, np.arange(7) % 2),
        print_of(NCHW, np.arange(7) % 3),
    ]
    assert len(set(prints)) == 6
    assert print_of(NCHW) == prints[0]


def test_npy_that_cannot_be_used_is_told(tmp_path):
    path = tmp_path / "x.npy"

    def told(words: str, spec: str = f"npy:{path}", **more) -> None:
        with pytest.raises(ValueError, match=words):
            open_source(spec, **more)

    told("names no file", "npy:")
    told("does not exist")
    told("is a folder", f"npy:{tmp_path}")
    told("unknown option 'label'", f"npy:{path},label=y.npy")
    np.save(path, np.zeros((4, 8, 9), np.float32))
    told("floating-point .*map your range to whole numbers")
    np.save(path, np.zeros((8, 9), np.uint8))
    told("N x H x W")
    np.save(path, np.zeros((0, 8, 9), np.uint8))
    told("not a .npy of numbers|holds no images")
    np.save(path, NCHW)
    told("channels is 3, but its images have 5", channels=3)
    told("there is no file .*y.npy", f"npy:{path},labels=y.npy")
    with pytest.raises(NoTestSplitError):
        open_source(f"npy:{path}", "test")
    path.write_bytes(path.read_bytes()[:-1])
    told("not a .npy of numbers that is whole")
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    told("not a .npy of numbers")
    path.write_bytes(b"no array")
    told(r"whole \(it is none, or holds objects\)$")
    path.write_bytes(b"\x93NUMPY\x01\x00\x0a\x00{'descr': (")  # NumPy: tokenize.TokenError
    told("not a .npy of numbers that is whole")
    np.savez(tmp_path / "z.npz", images=GREY)
    told("write npz:", f"npy:{tmp_path}/z.npz")
    with pytest.raises(ValueError, match="more than the limit"):
        mapped.check_images("npy:x", np.dtype("u1"), (1, 10**5, 10**5), "NHW", None)


# ---- npz


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (("train_images", "train_labels", "test_images", "test_labels"), (0, 1), (2, 3)),
        (("x_train", "y_train", "x_test", "y_test"), (0, 1), (2, 3)),
        (("X_train", "Y_train", "X_val", "Y_val"), (0, 1), (2, 3)),
        (("Training_Images", "Training_Labels", "dev_images", "dev_labels"), (0, 1), (2, 3)),
        (("images", "labels", "images_eval", "labels_eval"), (0, 1), (2, 3)),
        (("images", "labels"), (0, 1), None),
        (("X", "y"), (0, 1), None),
        (("arr_0", "arr_1"), (0, 1), None),
        (("data", "target"), (0, 1), None),
        (("arr_0",), (0, None), None),
        (("train_images", "test_images"), (0, None), (1, None)),
        (("x_train", "y_train", "x_test"), (0, 1), (2, None)),
    ],
)
def test_npz_by_the_names_people_give(tmp_path, names, train, test):
    parts = [GREY, np.arange(7) % 3, GREY[::-1], (np.arange(7) + 1) % 3]
    by_name = {
        n: parts[i if len(names) != 2 or test is None else 2 * i] for i, n in enumerate(names)
    }
    np.savez_compressed(tmp_path / "x.npz", **by_name)
    for split, keys in (("train", train), ("test", test)):
        if keys is None:
            with pytest.raises(NoTestSplitError, match="has no test split"):
                open_source(f"npz:{tmp_path}/x.npz", split)
            continue
        source = open_source(f"npz:{tmp_path}/x.npz", split)
        images, labels = (None if key is None else by_name[names[key]] for key in keys)
        np.testing.assert_array_equal(stacked(source)[:, 0], images)
        found = [source.label(i) for i in range(7)]
        assert found == ([None] * 7 if labels is None else labels.tolist())
        assert source.classes == (None if labels is None else ("0", "1", "2"))


def test_medmnist_takes_test_and_not_val(tmp_path):
    parts = {}
    for i, split in enumerate(("train", "val", "test")):
        parts[f"{split}_images"] = GREY + i
        parts[f"{split}_labels"] = np.arange(7)[:, None] % 2
    np.savez(tmp_path / "m.npz", **parts)
    test = open_source(f"npz:{tmp_path}/m.npz", "test", 3)
    np.testing.assert_array_equal(stacked(test)[:, 2], GREY + 2)
    assert test.classes == ("0", "1")


def test_npz_by_key(tmp_path):
    labels = np.arange(7) % 2
    np.savez(tmp_path / "x.npz", photos=NCHW, kind=labels, images=GREY, labels=labels[:-1])
    source = open_source(f"npz:{tmp_path}/x.npz,images=photos,labels=kind,axes=NCHW")
    np.testing.assert_array_equal(stacked(source), NCHW)
    assert source.label(1) == 1
    assert source.bits == 16
    assert open_source(f"npz:{tmp_path}/x.npz,labels=none").classes is None
    with pytest.raises(ValueError, match="6 labels for 7 images"):
        open_source(f"npz:{tmp_path}/x.npz")
    with pytest.raises(ValueError, match="there is no 'pictures' in it; it has 'photos', 'kind'"):
        open_source(f"npz:{tmp_path}/x.npz,images=pictures")


def test_npz_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"

    def told(words: str, split: str = "train", **parts) -> None:
        if parts:
            np.savez(path, **parts)
        with pytest.raises(ValueError, match=words):
            open_source(f"npz:{path}", split)

    told("'pictures', and no images by a known name", pictures=GREY)
    told("floating-point", images=GREY / 255)
    told("the class '7', which training lacks", "test",
         x_train=GREY, y_train=np.arange(7), x_test=GREY, y_test=np.arange(7) + 3)  # fmt: skip
    told("labels=none leaves them out", images=GREY, labels=np.zeros((7, 14), int))
    told("its pixels are object", images=np.array([[[print] * 4] * 4], dtype=object))
    objects = np.array([print] * 7, dtype=object)
    told("'labels' in it is not an array of numbers", images=GREY, labels=objects)
    monkeypatch.setattr(arrays, "NPZ_LIMIT", 1000)
    told(r"np.save\('images.npy', np.load\(FILE\)\['images'\]\)", images=GREY)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-60])
    told("not a .npz archive that is whole")
    np.savez(path, images=GREY)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    told("not a .npz archive that is whole")


def test_no_pickle_is_ever_opened(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    np.savez(tmp_path / "x.npz", images=GREY, labels=np.array([print] * 7, dtype=object))
    np.save(tmp_path / "x.npy", np.array([print] * 7, dtype=object))
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    for spec in (f"npz:{tmp_path}/x.npz", f"npy:{tmp_path}/x.npy"):
        with pytest.raises(ValueError, match=r"not an? "):
            open_source(spec)


def test_specs_with_options_resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", GREY)
    np.save("y.npy", np.arange(7) % 2)
    spec = resolve_spec("npy:x.npy,labels=y.npy")
    assert spec == f"npy:{tmp_path}/x.npy,labels=y.npy"
    monkeypatch.chdir("/")
    assert torch.equal(open_source(spec).read(1).image[0], torch.from_numpy(GREY[1]))


@pytest.mark.parametrize(
    ("shape", "channels", "axes"),
    [
        ((9, 4, 16, 16), None, "NCHW"),
        ((9, 16, 16, 4), None, "NHWC"),
        ((9, 8, 8, 200), None, "NHWC"),
        ((9, 5, 40, 30), None, "NCHW"),
        ((9, 40, 30, 3), None, "NHWC"),
        ((9, 3, 3, 1), None, "NHWC"),
        ((9, 5, 40, 5), None, None),
        ((9, 3, 40, 3), None, None),
        ((9, 40, 30, 20), None, None),
        ((9, 40, 30, 20), 20, "NHWC"),
        ((9, 16, 16, 4), 16, "NCHW"),
    ],
)
def test_channels_are_found_where_there_is_no_doubt(shape, channels, axes):
    if axes is None:
        with pytest.raises(ValueError, match="cannot be told"):
            mapped.find_axes("npy:x", shape, None, channels)
    else:
        assert mapped.find_axes("npy:x", shape, None, channels) == axes
