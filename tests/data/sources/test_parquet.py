"""Tests of images in Parquet files and in Hugging Face's data sets."""

import io
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.sources.formats.parquet import KEPT_GROUPS, parquet_source
from vitrail.data.sources.formats.parquet_index import Files
from vitrail.data.sources.registry import open_source, resolve_spec

pyarrow = pytest.importorskip("pyarrow", reason="needs the parquet extra")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def hf_table(values: list[int], names: list[str] | None = None, **more: list) -> "pyarrow.Table":
    """Returns a table in Hugging Face's layout: structs of bytes and path, with metadata."""
    image = pyarrow.array([{"bytes": png(v), "path": f"{v}.png"} for v in values])
    columns = {"image": image, "label": pyarrow.array([v % 3 for v in values]), **more}
    features = {"image": {"_type": "Image"}}
    features["label"] = {"names": names, "_type": "ClassLabel"} if names else {"_type": "Value"}
    said = json.dumps({"info": {"features": features}})
    return pyarrow.table(columns).replace_schema_metadata({"huggingface": said})


def write(path: Path, table: "pyarrow.Table", rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


def test_hugging_faces_layout(tmp_path):
    names = ["ant", "bee", "cat", "dog"]
    for number in range(2):
        values = list(range(10 * number, 10 * number + 10))
        write(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", hf_table(values, names))
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", hf_table([100, 101], names))
    source = open_source(f"parquet:{tmp_path}")
    assert len(source) == 20
    assert source.classes == tuple(names)
    assert [len(block) for block in source.blocks()] == [4, 4, 2, 4, 4, 2]
    for index in (0, 19, 3, 4, 10, 17):
        sample = source.read(index)
        assert sample.image[:, 1, 1].tolist() == [index, 0, 255 - index]
        assert sample.label == source.label(index) == index % 3
    assert source.id(13) == "train-00001-of-00002.parquet/3"
    test = open_source(f"parquet:{tmp_path}", "test", channels=1)
    assert test.read(1).image.shape == (1, 4, 6)
    assert test.label(1) == 101 % 3
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(7).image, source.read(7).image)


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
    table = hf_table(list(range(120)), text=pyarrow.array([f"t{i}" for i in range(120)]))
    source = open_source(f"parquet:{write(tmp_path / 'a.parquet', table)}")
    assert source.captioned
    read = []
    original = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, i, **of: read.append(i) or original(self, i, **of),
    )
    for _ in range(3):
        for index in range(4 * KEPT_GROUPS):
            assert source.read(index).text == source.text(index) == f"t{index}"
    assert read == list(range(KEPT_GROUPS))
    source.read(119)
    source.read(0)
    assert read == [*range(KEPT_GROUPS), 29, 0]
    assert len(source._tables) == KEPT_GROUPS


def test_columns_by_name_and_type(tmp_path):
    pictures = pyarrow.array([png(1), png(2)], pyarrow.large_binary())
    thumbs = pyarrow.array([png(3), png(4)])
    table = pyarrow.table({"a": pictures, "b": thumbs, "Class": ["x", "y"], "Caption": ["c", " "]})
    path = write(tmp_path / "t.parquet", table)
    with pytest.raises(ValueError, match="'a', 'b' could each be the image"):
        open_source(f"parquet:{path}")
    source = open_source(f"parquet:{path},image=a")
    assert source.read(0).image[0, 0, 0] == 1
    assert source.classes == ("x", "y")
    assert source.text(0) == "c"
    with pytest.raises(BadSampleError, match="no caption"):
        source.read(1)
    other = open_source(f"parquet:{path},image=b,label=Caption")
    assert other.read(0).image[0, 0, 0] == 3
    assert [other.label(i) for i in range(2)] == [0, None]
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="image=Class: columns that can be the image: 'a', 'b'"):
        open_source(f"parquet:{path},image=Class")
    write(tmp_path / "u.parquet", table.select(["Class"]))
    with pytest.raises(ValueError, match="no column of images"):
        open_source(f"parquet:{tmp_path / 'u.parquet'}")


def test_bad_rows_are_named(tmp_path):
    image = [{"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"x", "path": None}]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(image, kind)})
    source = open_source(f"parquet:{write(tmp_path / 't.parquet', table)}")
    for index, why in enumerate(("passwd', which is not followed", "no bytes", "not an image")):
        with pytest.raises(BadSampleError, match=why) as error:
            source.read(index)
        assert error.value.id == f"t.parquet/{index}"


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name, value in (("en", 1), ("fr", 2)):
        write(tmp_path / name / "0.parquet", hf_table([value]))
    source = open_source(f"parquet:{tmp_path}/*/0.parquet")
    assert [source.id(i) for i in range(2)] == ["en/0.parquet/0", "fr/0.parquet/0"]


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    ends = pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2)))
    halved = pyarrow.StringArray.from_buffers(2, ends, pyarrow.py_buffer(b"a\xff"))
    images = pyarrow.array([png(1), png(2)])
    path = write(tmp_path / "t.parquet", pyarrow.table({"image": images, "caption": halved}))
    source = open_source(f"parquet:{path}")
    assert source.read(0).text == "a"
    assert source.text(1) is None
    with pytest.raises(BadSampleError, match="not UTF-8"):
        source.read(1)
    write(path, pyarrow.table({"image": images, "label": halved}))
    with pytest.raises(ValueError, match=r"t\.parquet: it cannot be read as Parquet"):
        open_source(f"parquet:{path}")


def test_damaged_files(tmp_path):
    path = write(tmp_path / "t.parquet", hf_table(list(range(12))))
    source = open_source(f"parquet:{path}")
    place = parquet.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert source.read(0).label == 0
    with pytest.raises(BadSampleError, match="row group cannot be read"):
        source.read(5)
    path.write_bytes(data[:200])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        open_source(f"parquet:{path}")


def test_what_is_refused(tmp_path):
    path = write(tmp_path / "train-0.parquet", hf_table([1, 2]))
    with pytest.raises(NoTestSplitError):
        open_source(f"parquet:{path}", "test")
    with pytest.raises(ValueError, match="stream=yes"):
        open_source("parquet:https://host/a.parquet")
    with pytest.raises(ValueError, match="unknown option"):
        open_source(f"parquet:{path},column=3")
    with pytest.raises(ValueError, match="image files give 1"):
        open_source(f"parquet:{path}", channels=4)
    write(tmp_path / "test-0.parquet", hf_table([2, 3]))
    with pytest.raises(ValueError, match="class '0', which training lacks"):
        open_source(f"parquet:{tmp_path}", "test")


def test_remote_files_are_read_in_place(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    names = ["a", "b", "c"]
    local = write(tmp_path / "x.parquet", hf_table(list(range(20)), names))
    with memory.open("/shards/x.parquet", "wb") as file:
        file.write(local.read_bytes())
    files = Files(("/shards/x.parquet",), memory)
    source = parquet_source("hf:x", files, files, {}, None)
    here = open_source(f"parquet:{local}")
    assert source.fingerprint() == here.fingerprint()
    for index in (19, 0, 7):
        assert torch.equal(source.read(index).image, here.read(index).image)
    again = parquet_source("hf:x", files, files, {}, None)
    memory.rm("/shards/x.parquet")
    with pytest.raises(OSError, match=r"x\.parquet"):  # the net is not the sample's fault
        again.read(0)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package without a network, with its cache below tmp_path."""
    package = pytest.importorskip("datasets", reason="needs the hf extra")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(package.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return package


def rows_of(datasets, values: list[int], names: list[str], with_text: bool = False):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {
        "image": [{"bytes": png(v), "path": None} for v in values],
        "label": [v % len(names) for v in values],
    }
    if with_text:
        features["text"] = datasets.Value("string")
        columns["text"] = [f"number {v}" for v in values]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_saved_data_set(tmp_path, datasets, monkeypatch):
    splits = datasets.DatasetDict(
        {
            "train": rows_of(datasets, list(range(12)), ["x", "y"], with_text=True),
            "validation": rows_of(datasets, [20, 21], ["x", "y"], with_text=True),
        }
    )
    splits.save_to_disk(str(tmp_path / "saved"))
    source = open_source(f"hf:{tmp_path / 'saved'}")
    assert source.classes == ("x", "y")
    assert source.captioned
    sample = source.read(5)
    assert sample.image[:, 0, 0].tolist() == [5, 0, 250]
    assert (sample.label, sample.text, source.text(5)) == (1, "number 5", "number 5")
    test = open_source(f"hf:{tmp_path / 'saved'}", "test")
    assert test.read(1).image[0, 0, 0] == 21
    assert source.fingerprint() == open_source(f"hf:{tmp_path / 'saved'}").fingerprint()
    assert source.fingerprint() != test.fingerprint()
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(3).image, source.read(3).image)
    with pytest.raises(ValueError, match="no split 'extra'; its splits are train, validation"):
        open_source(f"hf:{tmp_path / 'saved'},split=extra")
    monkeypatch.chdir(tmp_path)
    assert resolve_spec("hf:saved,label=label") == f"hf:{tmp_path / 'saved'},label=label"
    assert resolve_spec("hf:uoft-cs/cifar10") == "hf:uoft-cs/cifar10"


def test_streamed_is_what_is_on_the_disk(tmp_path, datasets):
    for number in range(3):
        rows = rows_of(datasets, list(range(9 * number, 9 * number + 9)), ["x", "y", "z"])
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "set" / "data" / f"train-{number:05d}.parquet", batch_size=4)
    rows_of(datasets, [50], ["x", "y", "z"]).to_parquet(
        tmp_path / "set" / "data" / "test-0.parquet"
    )
    stream = open_source(f"hf:{tmp_path / 'set'},stream=yes")
    whole = open_source(f"hf:{tmp_path / 'set'}")
    assert len(stream) == len(whole) == 27
    assert stream.classes == whole.classes == ("x", "y", "z")
    assert stream.blocks() is not None
    for index in (26, 0, 9, 13):
        assert torch.equal(stream.read(index).image, whole.read(index).image)
        assert stream.label(index) == whole.label(index)
    for spec in (f"hf:{tmp_path / 'set'},stream=yes", f"hf:{tmp_path / 'set'}"):
        assert open_source(spec, "test").read(0).image[0, 0, 0] == 50
    some = open_source(f"hf:{tmp_path / 'set'},split=train[:5]")
    assert len(some) == 5


def test_a_folder_of_image_files_is_better_read_as_such(tmp_path, datasets):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (6, 8)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(ValueError, match=r"paths of files .*a\.png.*folder:DIR"):
        open_source(f"hf:{tmp_path / 'photos'}")


def test_hf_is_refused_in_words(tmp_path, datasets):
    with pytest.raises(ValueError, match=r"hf:no/such: it cannot be loaded .* without a network"):
        open_source("hf:no/such")
    with pytest.raises(ValueError, match="must be yes or no"):
        open_source("hf:no/such,stream=1")
    with pytest.raises(ValueError, match="names no data set"):
        open_source("hf:")
    saved = tmp_path / "saved"
    rows_of(datasets, [1], ["x"]).save_to_disk(str(saved))
    with pytest.raises(NoTestSplitError, match="its splits are train"):
        open_source(f"hf:{saved}", "test")


def test_what_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"vitrail\[hf\]"):
        open_source("hf:x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"vitrail\[parquet\]"):
        open_source(f"parquet:{path}")
