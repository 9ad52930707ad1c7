"""Tests of folders labelled by a table, and of folders of more than 8-bit grey and RGB."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.sources.registry import open_source, resolve_spec

PICTURE = Image.fromarray(np.full((6, 8, 3), 77, np.uint8))


def put(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(root / name)


def table(root, text: str, name: str = "labels.csv") -> None:
    (root / name).write_text(text)


def labels(source) -> dict[str, str | None]:
    numbers = {source.id(i): source.label(i) for i in range(len(source))}
    return {id: None if n is None else source.classes[n] for id, n in numbers.items()}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    put(folder, "a.png", "b.png", "sub/c.png", "sub/d.png", ".hidden/e.png")
    return folder


def test_labels_and_images_without_one(root):
    table(root, "path,label\nsub/c.png,dog\na.png,cat\n./sub//d.png,dog\n")
    source = open_source(f"folder:{root},labels=labels.csv")
    assert source.classes == ["cat", "dog"]
    assert labels(source) == {"a.png": "cat", "b.png": None, "sub/c.png": "dog", "sub/d.png": "dog"}
    assert source.read(2).label == 1
    assert source.read(1).label is None
    assert labels(pickle.loads(pickle.dumps(source))) == labels(source)


@pytest.mark.parametrize("none", ["", "-1"])
def test_a_blank_or_negative_label_is_none(root, none):
    table(root, f"file,class\na.png,2\nb.png,10\nsub/c.png,{none}\n")
    source = open_source(f"folder:{root},labels=labels.csv")
    assert source.classes == ["2", "10"], "numbers in their own order"
    assert labels(source) == {"a.png": "2", "b.png": "10", "sub/c.png": None, "sub/d.png": None}


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_kinds_of_tables(root, tmp_path, suffix):
    rows = {"path": ["a.png", "sub/c.png"], "label": ["x", "y"], "other": ["1", "2"]}
    path = tmp_path / f"far.{suffix}"
    if suffix == "tsv":
        path.write_text(
            "\n".join("\t".join(row) for row in [rows, *zip(*rows.values(), strict=True)])
        )
    elif suffix == "jsonl":
        lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(rows), path)
    source = open_source(f"folder:{root},labels={path}")
    assert labels(source) == {"a.png": "x", "b.png": None, "sub/c.png": "y", "sub/d.png": None}


def test_a_column_of_splits(root):
    text = "path,label,split\na.png,cat,train\nb.png,dog,test\nsub/c.png,emu,val\n"
    table(root, text)
    train, test = (open_source(f"folder:{root},labels=labels.csv", s) for s in ("train", "test"))
    assert train.classes == test.classes == ["cat", "dog", "emu"]
    assert labels(train) == {"a.png": "cat", "sub/d.png": None}, "no row: to train on"
    assert labels(test) == {"b.png": "dog"}
    table(root, text.replace("test", "val"))
    test = open_source(f"folder:{root},labels=labels.csv", "test")
    assert labels(test) == {"b.png": "dog", "sub/c.png": "emu"}
    table(root, text.replace("test", "train").replace("val", "train"))
    with pytest.raises(NoTestSplitError, match=r"^folder:.*has no test split: no row's 'split'"):
        open_source(f"folder:{root},labels=labels.csv", "test")


def test_splits_by_subfolders(tmp_path, caplog):
    put(tmp_path, "train/x/1.png", "train/x/2.png", "val/3.png")
    table(tmp_path, "path,label\ntrain/x/1.png,a\nval/3.png,b\n", "t.csv")
    with caplog.at_level(logging.WARNING):
        train, test = (open_source(f"folder:{tmp_path},labels=t.csv", s) for s in ("train", "test"))
    assert labels(train) == {"train/x/1.png": "a", "train/x/2.png": None}
    assert labels(test) == {"val/3.png": "b"}
    assert not caplog.records, "rows of the other split are not missing"


def test_no_test_split(root):
    table(root, "path,label\na.png,cat\n")
    with pytest.raises(NoTestSplitError, match=r"no test split.*a column 'split'.*hold_out"):
        open_source(f"folder:{root},labels=labels.csv", "test")


def test_rows_without_an_image_are_counted(root, caplog):
    table(root, "path,label\nno.png,x\na.png,cat\n../b.png,y\n/etc/x.png,z\n.hidden/e.png,h\n")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"folder:{root},labels=labels.csv")
    assert "4 of 5 rows name no image" in caplog.text
    assert "'no.png'" in caplog.text
    assert set(labels(source)) == {"a.png", "b.png", "sub/c.png", "sub/d.png"}
    table(root, "path,label\nx/a.png,cat\nx/b.png,dog\n")
    with pytest.raises(ValueError, match=r"none of its 2 rows.*'x/a\.png'.*called 'a\.png'"):
        open_source(f"folder:{root},labels=labels.csv")


def test_an_image_twice(root):
    table(root, "path,label\na.png,cat\nb.png,dog\n./a.png,cat\n")
    assert labels(open_source(f"folder:{root},labels=labels.csv"))["a.png"] == "cat"
    table(root, "path,label\na.png,cat\nb.png,dog\n./a.png,dog\n")
    with pytest.raises(ValueError, match=r"row 3 gives 'a\.png' another label"):
        open_source(f"folder:{root},labels=labels.csv")
    table(root, "path,label,split\na.png,cat,train\na.png,cat,test\n")
    with pytest.raises(ValueError, match=r"row 2 gives 'a\.png' another split"):
        open_source(f"folder:{root},labels=labels.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,name\na.png,x\n", "no column for the label; its columns are 'path', 'name'"),
        ("path,label\na.png,\n", "none of its rows has a label"),
        ("path,label\n", "no rows"),
        ("path,label,split\na.png,x,holdout\n", "'holdout'; it must be one of"),
        ("path,label\na.png\n", "line 2 ends a row of 1 fields"),
    ],
)
def test_bad_tables_are_named(root, text, says):
    table(root, text)
    with pytest.raises(ValueError, match=says) as caught:
        open_source(f"folder:{root},labels=labels.csv")
    assert str(caught.value).startswith(f"folder:{root},labels=labels.csv: labels=labels.csv: ")


def test_bad_options_are_named(root):
    with pytest.raises(ValueError, match=r"labels=none\.csv: .*none\.csv cannot be read"):
        open_source(f"folder:{root},labels=none.csv")
    with pytest.raises(ValueError, match=r"its name must end in \.csv"):
        open_source(f"folder:{root},labels=a.png")
    with pytest.raises(ValueError, match=r"unknown option 'label' .*it has bits, labels"):
        open_source(f"folder:{root},label=x.csv")
    with pytest.raises(ValueError, match="bits is '12'; it must be 8 or 16"):
        open_source(f"folder:{root},bits=12")


def test_a_folder_that_is_called_like_an_option(tmp_path):
    put(tmp_path / "runs,lr=1", "a.png")
    assert len(open_source(f"folder:{tmp_path}/runs,lr=1")) == 1


def test_spec_means_the_same_from_anywhere(root, monkeypatch):
    table(root, "path,label\na.png,cat\n")
    monkeypatch.chdir(root.parent)
    spec = resolve_spec("folder:images,labels=labels.csv")
    monkeypatch.chdir("/")
    assert labels(open_source(spec))["a.png"] == "cat"


def test_fingerprints(root):
    prints = {open_source(f"folder:{root}").fingerprint()}
    for text in ("a.png,cat\n", "a.png,dog\n", "b.png,cat\n"):
        table(root, f"path,label\n{text}")
        prints.add(open_source(f"folder:{root},labels=labels.csv").fingerprint())
    assert len(prints) == 4


# ---- 16 bits, other channels


def test_sixteen_bits(root):
    values = np.array([[0, 300], [40000, 65535]], np.uint16)
    Image.fromarray(values).save(root / "z.png")
    source = open_source(f"folder:{root},bits=16", channels=1)
    assert source.bits == 16
    image = source.read(4).image
    assert image.dtype == torch.uint16
    assert image[0].tolist() == values.tolist()
    assert source.read(0).image.dtype == torch.uint16, "8 bits become 16"
    assert open_source(f"folder:{root}", channels=1).read(4).image.dtype == torch.uint8


def test_arrays_of_many_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 7), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    source = open_source(f"folder:{tmp_path}", channels=5)
    assert source.channels == 5
    assert source.read(0).image.tolist() == pixels.tolist()
    rgb = open_source(f"folder:{tmp_path}")
    with pytest.raises(BadSampleError, match=r"a\.npy.*3 channels"):
        rgb.read(0)


def test_arrays_beside_images_are_no_images(tmp_path):
    put(tmp_path, "a.png")
    np.save(tmp_path / "features.npy", np.zeros((2, 2), np.uint8))
    source = open_source(f"folder:{tmp_path}")
    assert [source.id(i) for i in range(len(source))] == ["a.png"]


def test_channels_that_no_file_can_have(tmp_path):
    put(tmp_path, "a.jpg")
    for channels in (2, 4, 5):
        with pytest.raises(ValueError, match=rf"folder:.*channels is {channels}; .*\.npy, \.tif"):
            open_source(f"folder:{tmp_path}", channels=channels)
