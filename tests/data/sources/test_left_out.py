"""Tests that what a source leaves out is counted and named, in `Source.notes` and in the log."""

import csv
import io
import json
import logging
import os
import tarfile
import unicodedata

import numpy as np
import pytest
from PIL import Image, features

from vitrail.data.decode import formats
from vitrail.data.sources import registry as sources
from vitrail.data.sources.datasets import fashion_mnist
from vitrail.data.sources.formats import listing as manifest
from vitrail.data.sources.registry import open_source

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_LOGGED", set())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def picture(value: int = 7, format: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 90, 30)).save(file, format, **how)
    return file.getvalue()


def put(root, *names: str, data: bytes | None = None) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if data is None else data)


def shard(path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def ids(source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def labels(source) -> list[int | None]:
    return [source.label(i) for i in range(len(source))]


def table(path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# ---- suffixes


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        *((s, "JPEG") for s in ("jfif", "JPE", "jif", "mpo")),
        *((s, "PPM") for s in ("ppm", "pnm")),
        ("apng", "PNG"),
        pytest.param(
            "jp2",
            "JPEG2000",
            marks=pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow lacks it"),
        ),
        pytest.param(
            "avif",
            "AVIF",
            marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow lacks it"),
        ),
    ],
)
def test_suffixes_of_formats_that_decode_are_listed(root, suffix, format):
    put(root, "a.png")
    put(root, f"b.{suffix}", data=picture(format=format))
    shard(root / "s/0.tar", [("x.png", picture()), (f"y.{suffix}", picture(format=format))])
    folder, shards = open_source(f"folder:{root}"), open_source(f"wds:{root}/s")
    assert ids(folder) == ["a.png", f"b.{suffix}"]
    for source in (folder, shards):
        assert len(source) == 2
        assert source.read(1).image.shape == (3, 6, 8)
        assert source.header(1)[:2] == (6, 8)


def test_other_suffixes_are_counted_and_named_once(root, caplog, monkeypatch):
    monkeypatch.setitem(formats.MISSING, ".heic", "HEIC needs X")
    put(root, "a.png", "b.heic", "deep/c.HEIC", "d.txt", "e", ".f.png", data=picture())
    for _ in range(2):
        source = open_source(f"folder:{root}")
    assert ids(source) == ["a.png"]
    [note] = source.notes
    assert note == (
        "4 files left out, whose suffix is of no image that can be read: 2 .heic, 1 without a "
        "suffix, 1 .txt (the first: b.heic); and 1 hidden; HEIC needs X"
    )
    assert caplog.text.count("4 files left out") == 1
    assert "folder:" in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        monkeypatch.setattr(sources, "_LOGGED", set())
        open_source(f"folder:{root}", quiet=True)
        monkeypatch.setenv("RANK", "1")
        open_source(f"folder:{root}")
    assert not caplog.text


def test_no_images_at_all_names_what_is_there(root):
    put(root, "a.xyz", data=b"x")
    with pytest.raises(ValueError, match=r"no images in .*1 file left out.* 1 \.xyz"):
        open_source(f"folder:{root}")


def test_a_cached_listing_has_the_same_notes(root, monkeypatch):
    monkeypatch.setattr(manifest, "KEPT_FROM", 1)
    monkeypatch.setattr(manifest, "SETTLED_NS", -(10**18))
    put(root, "a.png", "b.txt", "c/config.json", "c/metrics.jsonl", "c/figures/x.png")
    first = open_source(f"folder:{root}")
    monkeypatch.setattr(manifest, "_walk", None)
    again = open_source(f"folder:{root}")
    assert ids(again) == ids(first) == ["a.png"]
    assert again.notes == first.notes
    assert len(first.notes) == 2


def test_a_folder_that_is_reached_twice_is_named(root):
    put(root, "a/1.png", "b/2.png")
    os.symlink(root / "a", root / "c")
    [note] = open_source(f"folder:{root}").notes
    assert note == "1 link to a folder that is listed already left out: c"


# ---- vitrail's own folders


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "metrics.jsonl"),
        ("config.json", "checkpoints/step-1/state.pt"),
        ("config.json", "found.json"),
        ("evaluation.json",),
        ("encoder.json", "encoder.safetensors"),
        ("pack.json",),
    ],
    ids=lambda files: files[-1],
)
def test_what_vitrail_has_written_is_no_data(root, files):
    put(root, "a/1.png", "b/2.png", "runs/one/figures/pca.png")
    put(root, *(f"runs/one/{name}" for name in files), data=b"{}")
    source = open_source(f"folder:{root}")
    assert ids(source) == ["a/1.png", "b/2.png"]
    assert source.classes == ["a", "b"]
    [note] = source.notes
    assert "1 folder that vitrail has written" in note
    assert note.endswith("runs/one")


def test_a_run_in_the_data_folder_itself(root):
    put(root, "a/1.png", "b/2.png", "figures/pca.png", "checkpoints/x.png")
    put(root, "config.json", "metrics.jsonl", data=b"{}")
    source = open_source(f"folder:{root}")
    assert source.classes == ["a", "b"]
    assert "left out: checkpoints, figures" in " ".join(source.notes)


def test_a_class_with_a_config_of_its_own_is_data(root):
    put(root, "a/1.png", "b/2.png", "b/config.json", "b/figures/3.png")
    assert ids(open_source(f"folder:{root}")) == ["a/1.png", "b/2.png", "b/figures/3.png"]


# ---- shards


def left_of(root, members) -> tuple[str, ...]:
    shard(root / "0.tar", [("x.png", picture()), ("x.cls", b"1"), *members])
    first = open_source(f"wds:{root}").notes
    assert open_source(f"wds:{root}").notes == first, "from the cache"
    return first


@pytest.mark.parametrize(
    ("members", "count", "words"),
    [
        ([(f"take {i}.5 b.png", b"") for i in range(7)], 7, "have a dot before"),
        ([("y.cls", b"1"), ("z.txt", b"t")], 2, "do not stand beside their image"),
        ([("y.mp4", b"1"), ("z.mp4", b"1")], 2, "samples without an image"),
        ([("README", b"1")], 1, "members without a suffix"),
        ([("y.png", picture()), ("y.png", picture())], 1, "repeat a name"),
        ([("y.png", picture()), ("y.cls", b"1" * 300)], 1, "longer than 256 bytes"),
        ([("y.png", picture()), ("y.json", b"[1]")], 1, "are no object or longer than 1 MiB"),
        ([("y.png", picture()), ("y.json", b'{"label": 1.5}')], 1, "neither text nor whole"),
        ([("y.png", picture()), ("y.txt", b"t")], 1, "of 2 images have no caption"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_members_that_are_left_out_are_counted_and_named(root, members, count, words):
    [note] = left_of(root, members)
    assert note.startswith(f"{count} ")
    assert words in note
    if "caption" not in words:
        assert f"0.tar/{members[0][0].split('.')[0]}" in note


def test_a_format_that_cannot_be_read_in_a_shard(root, monkeypatch):
    monkeypatch.setitem(formats.MISSING, ".heix", "HEIX needs Y")
    [note] = left_of(root, [("y.heix", b"x"), ("z.heix", b"x")])
    assert note == "2 .heix images are left out (the first: '0.tar/y.heix'); HEIX needs Y"


def test_labels_apart_from_their_images_are_the_reason_for_none(root):
    images = [(f"x{i}.png", picture()) for i in range(6)]
    shard(root / "0.tar", images + [(f"x{i}.cls", b"1") for i in range(6)])
    source = open_source(f"wds:{root}")
    assert source.classes is None
    assert "6 labels or captions do not stand beside" in source.notes[0]
    assert "no image has a member .cls" in source.unlabelled


def test_counts_of_shards_add_up(root):
    for number in range(3):
        shard(root / f"{number}.tar", [("x.png", picture()), ("y.cls", b"1")])
    [note] = open_source(f"wds:{root}").notes
    assert note.startswith("3 labels")
    assert "'0.tar/y.cls'" in note
    shard(root / "1.tar", [("x.png", picture())])  # only this one is indexed again
    [note] = open_source(f"wds:{root}").notes
    assert note.startswith("2 labels")


# ---- splits


def test_unknown_folders_beside_splits_are_named(root):
    put(root, "train/a/1.png", "train/b/2.png", "test/a/3.png", "holdout/a/4.png", "val/a/5.png")
    source = open_source(f"folder:{root}")
    assert source.notes == (
        "beside 'train' and 'test', the folders are not read: 'holdout', 'val'",
    )
    assert ids(open_source(f"folder:{root}", "test")) == ["test/a/3.png"]


def test_one_known_split_among_others_is_named(root):
    put(root, "train/1.png", "holdout/2.png")
    source = open_source(f"folder:{root}")
    assert source.classes == ["holdout", "train"], "as before"
    [note] = source.notes
    assert "'train' has the name of a split and 'holdout' has not" in note


@pytest.mark.parametrize("flat", ["test/9.png", "test/unknown/9.png"])
def test_a_test_folder_without_classes_does_not_hide_val(root, flat):
    put(root, "train/a/1.png", "train/b/2.png", "val/b/3.png", flat)
    test = open_source(f"folder:{root}", "test")
    assert ids(test) == ["val/b/3.png"]
    assert labels(test) == [1]
    assert "so the validation data are the test split" in test.notes[-1]


def test_a_test_folder_without_classes_and_no_val(root):
    put(root, "train/a/1.png", "train/b/2.png", "test/9.png")
    assert ids(open_source(f"folder:{root}", "test")) == ["test/9.png"]


def test_unlabelled_test_rows_do_not_hide_those_of_validation(root):
    put(root, "a.png", "b.png", "c.png", "d.png")
    rows = [("a", "x", "train"), ("b", "y", "train"), ("c", "", "test"), ("d", "y", "val")]
    table(root / "t.csv", [{"path": f"{n}.png", "label": k, "split": s} for n, k, s in rows])
    test = open_source(f"folder:{root},labels=t.csv", "test")
    assert ids(test) == ["d.png"]
    assert "1 rows of 'val' left out" not in test.notes[-1]
    train = open_source(f"folder:{root},labels=t.csv")
    assert train.notes == ("1 rows of 'val' left out: 'test' is the test split",)


def test_unlabelled_test_shards_do_not_hide_those_of_validation(root):
    for split, label in {"train": b"0", "test": None, "val": b"0"}.items():
        beside = [] if label is None else [("x.cls", label)]
        shard(root / f"{split}-0.tar", [("x.png", picture()), *beside])
    test = open_source(f"wds:{root}", "test")
    assert ids(test) == ["val-0.tar/x.png"]
    assert labels(test) == [0]
    assert "1 shards of 'val' left out" in " ".join(open_source(f"wds:{root}").notes)


def test_unlabelled_test_arrays_do_not_hide_those_of_validation(root):
    root.mkdir()
    images = np.zeros((3, 8, 8), np.uint8)
    known, unknown = np.array([0, 1, 1]), np.array([-1, -1, -1])
    np.savez(
        root / "x.npz", x_train=images, y_train=known, x_test=images[:1], y_test=unknown[:1],
        x_val=images, y_val=known,
    )  # fmt: skip
    assert labels(open_source(f"npz:{root}/x.npz", "test")) == [0, 1, 1]
    assert open_source(f"npz:{root}/x.npz").notes == ("its images 'x_val' are not read",)


def test_shards_of_which_some_name_a_split(root):
    for name in ("train-0", "holdout-0"):
        shard(root / f"{name}.tar", [("x.png", picture())])
    [note] = open_source(f"wds:{root}").notes
    assert "named after 'train' and others, as 'holdout-0.tar', are not" in note


# ---- reasons


def test_stray_images_that_take_all_labels_away_are_named(root):
    put(root, "a/1.png", "b/2.png", "cover.png")
    source = open_source(f"folder:{root}")
    assert source.classes is None
    assert "1 image is in no class folder (cover.png)" in source.unlabelled
    assert source.notes == (f"no labels: {source.unlabelled}",)


def test_reasons_for_no_labels(root):
    put(root, "one/a/1.png")
    assert "the one subfolder 'a'" in open_source(f"folder:{root}/one").unlabelled
    put(root, "flat/1.png")
    source = open_source(f"folder:{root}/flat")
    assert source.unlabelled == "its images are in no subfolders"
    assert source.notes == (), "nothing is lost"
    table(root / "t.csv", [{"path": "flat/1.png", "caption": "c", "Category_ID": "3"}])
    assert "'Category_ID'" in open_source(f"pairs:{root}/t.csv").unlabelled
    np.save(root / "x.npy", np.zeros((2, 8, 8), np.uint8))
    assert "labels=FILE" in open_source(f"npy:{root}/x.npy").unlabelled


def test_columns_that_could_not_be_taken_are_named(root):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir()
    columns = {"image": [picture()], "label": [1.5], "caption": [["a", "b"]]}
    parquet.write_table(arrow.table(columns), root / "x.parquet")
    source = open_source(f"parquet:{root}/x.parquet")
    assert source.unlabelled == "its column 'label' (double) does not hold text or whole numbers"
    assert len(source.notes) == 2
    assert "'caption' (list" in source.notes[1]
    features_of = {"features": [1.0], "labels": [0], "ids": ["x"]}
    parquet.write_table(arrow.table(features_of), root / "y.parquet")
    with pytest.raises(ValueError, match=r"y.parquet has no column 'image'.*features, labels, ids"):
        open_source(f"parquet:{root}")


# ---- Unicode forms


def test_a_table_in_the_other_unicode_form(root):
    put(root, f"{NFD}.png", "b.png")
    table(root / "t.csv", [{"path": f"{NFC}.png", "label": "x"}, {"path": "b.png", "label": "y"}])
    source = open_source(f"folder:{root},labels=t.csv")
    assert sorted(zip(ids(source), labels(source), strict=True)) == [
        ("b.png", 1),
        (f"{NFD}.png", 0),
    ]
    table(root / "p.csv", [{"path": f"{NFC}.png", "caption": "c"}])
    assert open_source(f"pairs:{root}/p.csv").read(0).image.shape == (3, 6, 8)


def test_classes_in_two_unicode_forms_are_one(root):
    put(root, f"{NFC}/1.png", f"{NFD}/2.png", "b/3.png")
    source = open_source(f"folder:{root}")
    assert len(source.classes) == 2
    assert dict(zip(ids(source), labels(source), strict=True)) == {
        "b/3.png": 0, f"{NFD}/2.png": 1, f"{NFC}/1.png": 1,
    }  # fmt: skip
    assert "NFC and NFD" in source.notes[0]
    put(root, "s/train/b/1.png", f"s/train/{NFC}/2.png", f"s/test/{NFD}/3.png")
    assert labels(open_source(f"folder:{root}/s", "test")) == [1]


def test_labels_in_two_unicode_forms_are_one(root):
    put(root, "a.png", "b.png", "c.png")
    rows = [("a", NFC), ("b", NFD), ("c", "x")]
    table(root / "t.csv", [{"path": f"{n}.png", "label": k} for n, k in rows])
    source = open_source(f"folder:{root},labels=t.csv")
    assert len(source.classes) == 2
    assert source.label(0) == source.label(1) != source.label(2)


# ---- special files


@pytest.mark.parametrize("special", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "spec",
    ["pairs:{}.csv", "pairs:{}.jsonl", "folder:{root},labels={}.csv", "npy:{root}/x.npy,labels={}",
     "wds:{}.tar", "wds:{root}/0.tar,classes={}.json", "parquet:{}.parquet",
     "fashion-mnist:{root}"],
)  # fmt: skip
def test_a_pipe_or_a_device_is_refused_before_it_is_opened(root, special, spec):
    if spec.startswith("parquet"):
        pytest.importorskip("pyarrow")
    put(root, "a.png")
    np.save(root / "x.npy", np.zeros((2, 8, 8), np.uint8))
    shard(root / "0.tar", [("x.png", picture())])
    suffix = spec[spec.rindex("{}") + 2 :] if "{}" in spec else ""
    path = root / f"odd{suffix}"
    if spec.startswith("fashion"):
        path = root / "train-images-idx3-ubyte.gz"
    os.mkfifo(path) if special == "pipe" else os.symlink(special, path)
    with pytest.raises(ValueError, match=r"pipe|device"):
        open_source(spec.format(root / "odd", root=root))


def test_a_table_of_one_endless_line_is_refused(root, monkeypatch):
    from vitrail.data.sources.formats import read_table

    monkeypatch.setattr(read_table, "MAX_LINE", 100)
    put(root, "t.csv", data=b"path,caption\n" + b"x" * 200)
    with pytest.raises(ValueError, match="line 2 has more than 100 bytes"):
        open_source(f"pairs:{root}/t.csv")


# ---- Fashion-MNIST


def test_a_download_is_compared_and_made_again_if_it_is_not_whole(tmp_path, monkeypatch):
    import gzip
    import hashlib
    import struct

    rng = np.random.default_rng(0)
    packed = {}
    for prefix, count in {"train": 20, "t10k": 10}.items():
        images = struct.pack(">IIII", 0x803, count, 28, 28) + rng.bytes(784 * count)
        classes = struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        packed[f"{prefix}-images-idx3-ubyte.gz"] = images
        packed[f"{prefix}-labels-idx1-ubyte.gz"] = classes
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()}
    answers = {name: gzip.compress(data) for name, data in packed.items()}
    asked: list[str] = []

    def urlopen(url: str, timeout: float):
        assert url.startswith("https://")
        asked.append(url.rpartition("/")[2])
        return io.BytesIO(answers[asked[-1]])

    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "CONTENT", digests)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert len(open_source("fashion-mnist")) == 20
    assert sorted(asked) == sorted(packed)
    torn = tmp_path / "cache/vitrail/FashionMNIST/raw/t10k-images-idx3-ubyte.gz"
    torn.write_bytes(torn.read_bytes()[:-100])
    asked.clear()
    assert len(open_source("fashion-mnist", "test")) == 10
    assert asked == [torn.name], "the others are whole"
    torn.unlink()
    answers[torn.name] = gzip.compress(b"another")
    with pytest.raises(ValueError, match=r"download failed .*another content.*SHA-256"):
        open_source("fashion-mnist", "test")
    assert not torn.exists()


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist not installed")
def test_the_published_content_is_that_of_debian():
    name = "t10k-labels-idx1-ubyte.gz"  # the smallest
    packed = (fashion_mnist.DEBIAN / name).read_bytes()
    assert fashion_mnist._digest(packed) == fashion_mnist.CONTENT[name]


def test_notes_are_plain_data(root):
    put(root, "a.png", "b\x1b[31m.heicx", data=picture())
    json.dumps(open_source(f"folder:{root}").notes)
