"""Tests of tables of images and captions: every kind of file, and damaged ones."""

import builtins
import csv
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.formats.columns import COLUMNS, OF_IMAGES, UNUSUAL
from vitrail.data.sources.formats.pairs import unique_ids
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import hold_out
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.views.plan import MultiCrop
from vitrail.train.build import captions_of

ROWS = [
    {"path": "a.png", "caption": 'a "red" cat, asleep', "label": "10", "split": "train"},
    {"path": "sub/b.png", "caption": "žluťoučký kůň\nin two lines", "label": "9", "split": "val"},
    {"path": "c.png", "caption": "  a dog ", "label": "9", "split": "train"},
]


NO_CAPTION = "its row has no caption, or one of half characters"


def put(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), len(name), np.uint8)).save(folder / name)


def write(path, rows: list[dict]) -> str:
    """Writes a table in the format of the suffix; returns its SPEC."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return f"pairs:{path}"


def ids(source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def labels(source) -> list[int | None]:
    return [source.label(i) for i in range(len(source))]


def refusal(spec: str, split: str = "train", **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(spec, split, **kwargs)
    assert spec in str(caught.value)
    return str(caught.value)


def reason(source, index: int) -> tuple[str, str]:
    with pytest.raises(BadSampleError) as caught:
        source.read(index)
    return caught.value.id, caught.value.reason


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "CSV"])
def test_every_kind_of_file_says_the_same(tmp_path, kind):
    put(tmp_path, "a.png", "sub/b.png", "c.png")
    spec = write(tmp_path / f"pairs.{kind.lower()}", ROWS)
    (tmp_path / f"pairs.{kind.lower()}").rename(tmp_path / f"pairs.{kind}")
    spec = f"pairs:{tmp_path}/pairs.{kind}"
    train, test = open_source(spec), open_source(spec, "test")
    assert ids(train) == ["a.png", "c.png"]
    assert ids(test) == ["sub/b.png"]
    assert [train.text(i) for i in range(2)] == ['a "red" cat, asleep', "a dog"]
    assert test.text(0) == "žluťoučký kůň\nin two lines"
    assert train.classes == test.classes == ["9", "10"], "numbers in the order of numbers"
    assert (labels(train), labels(test)) == ([1, 0], [0])
    assert train.captioned
    assert train.pixels() is None
    sample = test.read(0)
    assert torch.equal(sample.image, torch.full((3, 6, 8), len("sub/b.png"), dtype=torch.uint8))
    assert (sample.label, sample.text, sample.id) == (0, test.text(0), "sub/b.png")
    assert open_source(spec, channels=1).read(0).image.shape == (1, 6, 8)
    copy = pickle.loads(pickle.dumps(train))
    assert copy.fingerprint() == train.fingerprint()
    assert torch.equal(copy.read(1).image, train.read(1).image)


def test_without_split_and_label(tmp_path):
    put(tmp_path / "far", "x.png")
    put(tmp_path, "near/y.png")
    rows = [
        {"FilePath": str(tmp_path / "far/x.png"), " Title ": "x", "width": "8"},
        {"FilePath": "../y.png", " Title ": "y", "width": "8"},
    ]
    (tmp_path / "near/tables").mkdir()
    spec = write(tmp_path / "near/tables/t.csv", rows)
    source = open_source(spec)
    assert ids(source) == [str(tmp_path / "far/x.png"), "../y.png"], "as written"
    assert source.read(0).image.shape == source.read(1).image.shape == (3, 6, 8)
    assert source.classes is None
    assert labels(source) == [None, None]
    with pytest.raises(NoTestSplitError, match=r"lacks a column 'split'.*hold_out"):
        open_source(spec, "test")


@pytest.mark.parametrize(
    ("image", "caption", "label"),
    [
        (image, COLUMNS["caption"][i % 5], ("label", "class", "category")[i % 3])
        for i, image in enumerate(COLUMNS["image"])
        if image not in OF_IMAGES
    ],
)
def test_names_of_columns(tmp_path, image, caption, label):
    rows = [{"url": "u", caption.upper(): "c", label.title(): "b", image: "p"}]
    source = open_source(write(tmp_path / "t.jsonl", rows))
    assert (source.id(0), source.text(0), source.classes) == ("p", "c", ["b"])


def test_unusual_names_of_columns_count_only_without_others(tmp_path):
    row = {"path": "p", "photo": 1.5, "bytes": [1], "text": "c", "txt": "d", "labels": ["x", "y"]}
    source = open_source(write(tmp_path / "t.jsonl", [row]))
    assert (source.id(0), source.text(0), source.classes) == ("p", "c", None)
    del row["path"]
    assert "row 1: 'photo' is '1.5' (float)" in refusal(write(tmp_path / "t.jsonl", [row]))
    assert set(UNUSUAL) < {name for names in COLUMNS.values() for name in names}


def test_labels_may_be_numbers_and_may_lack(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"path": str(i), "text": "t", "class": c} for i, c in enumerate([10, 2, None, 2])]
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        source = open_source(write(tmp_path / name, rows))
        assert source.classes == ["2", "10"]
        assert labels(source) == [1, 0, None, 0]
    for row, name in zip(rows, ["b", "10", "a", "b"], strict=True):
        row["class"] = name
    assert open_source(write(tmp_path / "t.csv", rows)).classes == ["10", "a", "b"]
    for row in rows:
        row["class"] = ""
    assert open_source(write(tmp_path / "t.csv", rows)).classes is None


def test_json_lines_may_differ_in_their_fields(tmp_path):
    rows = [{"path": "a"}, {"path": "b", "text": "t"}, {"text": "u", "label": "x", "path": "c"}]
    source = open_source(write(tmp_path / "t.jsonl", rows))
    assert [source.text(i) for i in range(3)] == [None, "t", "u"]
    assert labels(source) == [None, None, 0]


def test_several_captions_an_image(tmp_path):
    put(tmp_path, "a.png")
    captions = ["one", "two", "three"]
    rows = [{"path": "a.png", "caption": caption} for caption in captions]
    source = open_source(write(tmp_path / "t.csv", rows))
    assert [source.read(i).text for i in range(3)] == captions
    assert ids(source) == ["a.png", "a.png#2", "a.png#3"]
    assert unique_ids(["a", "a#2", "b", "a", "a"]) == ("a", "a#2", "b", "a#3", "a#4")


def test_bad_rows_are_bad_samples(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    rows = [
        {"path": "a.png", "caption": None},
        {"path": "a.png", "caption": " \n "},
        {"path": "lost.png", "caption": "c"},
        {"path": "torn.png", "caption": "c"},
        {"path": "", "caption": "c"},
        {"path": "a.png", "caption": "half \ud83d"},
        {"path": "nul\0.png", "caption": "c"},
        {"path": ".", "caption": "c"},
        {"path": "a.png", "caption": "good"},
    ]
    source = open_source(write(tmp_path / "t.jsonl", rows))
    assert source.text(0) is None
    assert reason(source, 0) == ("a.png", NO_CAPTION)
    assert reason(source, 1) == ("a.png#2", NO_CAPTION)
    assert "no such file" in reason(source, 2)[1]
    assert "damaged" in reason(source, 3)[1]
    assert reason(source, 4) == ("(no path)", "its row has no path of an image")
    assert reason(source, 5)[1] == NO_CAPTION
    assert source.text(5) is None  # no tokenizer learns from it
    assert "damaged" in reason(source, 6)[1]
    assert "not a file" in reason(source, 7)[1]
    assert source.read(8).text == "good"
    assert source.fingerprint()


HEADER = b"path,caption\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", r"no column for the image; its columns are none"),
        ("t.csv", b"url,alt\nx,y\n", r"no column for the image; its columns are 'url', 'alt'"),
        ("t.csv", b"a.png,a cat\n", r"its columns are 'a.png', 'a cat'; name one of them path"),
        ("t.csv", b"path,alt\nx,y\n", r"no column for the caption; .* caption, text, title or d"),
        ("t.csv", b"path,file,caption\nx,y,z\n", r"'path', 'file' could each be the image"),
        ("t.csv", b"path,text,title\nx,y,z\n", r"'text', 'title' could each be the caption"),
        ("t.csv", b"path,text,class,label\nx,y,z,w\n", r"'class', 'label' could each be the label"),
        ("t.csv", b"path,path,text\nx,y,z\n", r"two of its columns are called 'path'"),
        ("t.csv", HEADER, "no rows"),
        ("t.csv", HEADER + b"a,b\n\nc\n", "line 4 ends a row of 1 fields, but the header has 2"),
        ("t.csv", HEADER + b"a,b,c\n", "line 2 ends a row of 3 fields"),
        ("t.csv", HEADER + b'a,"b\nc,d\n', r"line 3: unexpected end of data; .*in quotes"),
        ("t.csv", HEADER + b'a,"b" c\n', "line 2: ',' expected after"),
        ("t.csv", HEADER + b'a,"' + b"b" * 140_000 + b'"\n', "line 2: field larger than"),
        ("t.csv", HEADER + b"a,b\0c\n", "line 2 holds a NUL byte"),
        ("t.csv", HEADER + b"a,caf\xe9\n", "line 2 is not UTF-8 text"),
        ("t.csv", "path,caption\na,b\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("t.tsv", HEADER, "its columns are 'path,caption'"),
        ("t.jsonl", b"", "its columns are none"),
        ("t.jsonl", b'{"path": "a", "text": "b"}\n["a", "b"]\n', "line 2 is not a JSON object"),
        ("t.jsonl", b'\n{"path": "a"', "line 2 is not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("t.jsonl", b'{"path": ["a"], "text": "b"}', r"row 1: 'path' is \"\['a'\]\" \(list\)"),
        ("t.jsonl", b'{"path": "a", "text": "b", "label": 1.5}', r"'label' is '1.5' \(float\)"),
        ("t.jsonl", b'{"path": "a", "text": "b", "label": true}', r"'label' is 'True' \(bool\)"),
        ("t.jsonl", b'{"path": "a", "text": 5}', "row 1 has the caption 5, which is not text"),
        ("t.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("t.parquet", b"", "cannot be read as Parquet"),
        ("t.xlsx", b"", "must end in .csv, .tsv, .jsonl, .parquet"),
        ("t", b"", "must end in .csv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(f"pairs:{tmp_path / name}")
    assert str(tmp_path / name) in str(caught.value)


def test_parquet_of_other_types(tmp_path):
    pytest.importorskip("pyarrow")
    image = {"bytes": b"\x89PNG", "path": "a.png"}
    spec = write(tmp_path / "t.parquet", [{"image": image, "text": "b"}])
    assert "'image' is" in refusal(spec)
    spec = write(tmp_path / "t.parquet", [{"image": b"\xff", "text": "b"}])
    assert "(bytes)" in refusal(spec)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'vitrail[parquet]'" in refusal(f"pairs:{tmp_path}/t.parquet")


def test_paths_that_are_no_table(tmp_path):
    assert "there is no file" in refusal(f"pairs:{tmp_path}/t.csv")
    assert "is a folder" in refusal(f"pairs:{tmp_path}")
    assert "write pairs:FILE" in refusal("pairs:")
    (tmp_path / "t.csv").write_bytes(HEADER + b"a,b\n")
    assert "channels is 4" in refusal(f"pairs:{tmp_path}/t.csv", channels=4)


def test_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,caption\r\na,b\r\n\r\n")
    source = open_source(f"pairs:{tmp_path}/t.csv")
    assert (ids(source), source.text(0)) == (["a"], "b")


def test_splits(tmp_path):
    def spec(*splits: str | None) -> str:
        rows = [{"path": str(i), "text": "t", "split": s} for i, s in enumerate(splits)]
        return write(tmp_path / "t.jsonl", rows)

    both = spec("train", " Test", "val", "TRAIN")
    assert ids(open_source(both)) == ["0", "3"]
    assert ids(open_source(both, "test")) == ["1"], "val where there is a test is in neither"
    for word in ("validation", "VALID", "dev", "testing", "Eval"):
        assert ids(open_source(spec("Training", word), "test")) == ["1"]
    assert ids(open_source(spec("train", "val", "dev", "training"))) == ["0", "3"]
    with pytest.raises(NoTestSplitError, match="no row's 'split' is test or val"):
        open_source(spec("train", "train"), "test")
    assert "no row's 'split' is train" in refusal(spec("test"))
    assert "row 2 has the split 'trian'; it must be one of train" in refusal(spec("train", "trian"))
    assert "row 1 has the split None" in refusal(spec(None, "train"))


def test_fingerprint_tells_rows_apart(tmp_path):
    def fingerprint(*rows: tuple) -> str:
        named = [dict(zip(("path", "text", "label"), row, strict=True)) for row in rows]
        return open_source(write(tmp_path / "t.jsonl", named)).fingerprint()

    first, second = ("a", "x", 0), ("b", "y", 1)
    before = fingerprint(first, second)
    assert fingerprint(first, second) == before
    assert fingerprint(second, first) != before
    assert fingerprint(("a", "z", 0), second) != before
    assert fingerprint(("c", "x", 0), second) != before
    assert fingerprint(("a", "x", 1), ("b", "y", 0)) != before


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_hands_on_captions(tmp_path, workers):
    put(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [{"path": f"{i}.png", "text": f"it is {i}" if i != 5 else ""} for i in range(12)]
    source = open_source(write(tmp_path / "t.csv", rows))
    quarantine = Quarantine(None, len(source), 0.5)
    plan = MultiCrop(global_size=8, n_local=0).plan()
    loader = Loader(
        source,
        plan,
        batch_size=6,
        seed=0,
        device="cpu",
        workers=workers,
        quarantine=quarantine,
    )
    batches = [batch for slices in loader.steps(0, 4) for batch in slices]
    assert len(batches) == 4
    for batch in batches:
        assert batch.text == tuple(f"it is {i}" for i in batch.index.tolist())
    assert list(quarantine.entries) == ["5.png"]


def test_captions_of_one_image_are_held_out_together(tmp_path):
    rows = [{"path": f"{i % 6}.png", "caption": f"caption {i}"} for i in range(24)]
    source = open_source(write(tmp_path / "pairs.csv", rows))
    train, test = hold_out(source, 0.34)
    pictures = [{side.picture(i) for i in range(len(side))} for side in (train, test)]
    assert not pictures[0] & pictures[1]
    assert (len(train), len(test)) == (16, 8)


def test_half_a_character_is_no_caption_to_learn_from(tmp_path):
    rows = [{"path": "a.png", "caption": "\ud800"}, {"path": "b.png", "caption": "a hen"}]
    source = open_source(write(tmp_path / "pairs.jsonl", rows))
    assert captions_of(source) == ["a hen"]
    Tokenizer.train(captions_of(source), 258)


def test_two_ways_to_write_a_path_are_one_picture(tmp_path):
    rows = [{"path": p, "caption": "a hen"} for p in ("a.png", "./a.png", "x/../a.png", "b.png")]
    source = open_source(write(tmp_path / "pairs.csv", rows))
    assert len({source.picture(i) for i in range(4)}) == 2
