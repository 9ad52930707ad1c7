"""Tests of tar shards: their samples, reading, and refusals."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.contract import BadSampleError, NoTestSplitError
from vitrail.data.sources.formats import tar_index
from vitrail.data.sources.registry import open_source, resolve_spec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail"


def png(value: int, size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def three(start: int) -> dict[str, bytes]:
    return {
        f"{start + i:04d}.{suffix}": data
        for i in range(3)
        for suffix, data in (("png", png(start + i)), ("cls", b"%d\n" % (i % 2)))
    }


def test_samples_of_all_shards_in_order(tmp_path):
    for number in range(3):
        shard(tmp_path / f"s-{number:03d}.tar", three(10 * number))
    source = open_source(f"wds:{tmp_path}/s-{{000..002}}.tar")
    assert len(source) == 9
    assert list(source.blocks()) == [range(0, 3), range(3, 6), range(6, 9)]
    assert source.classes == ("0", "1")
    assert [source.label(i) for i in range(9)] == [0, 1, 0] * 3
    for index, value in enumerate((0, 1, 2, 10, 11, 12, 20, 21, 22)):
        sample = source.read(index)
        assert sample.image.shape == (3, 4, 6)
        assert sample.image[:, 0, 0].tolist() == [value, 0, 255 - value]
        assert sample.id == source.id(index) == f"s-{index // 3:03d}.tar/{value:04d}.png"
    grey = open_source(f"wds:{tmp_path}/s-001.tar", channels=1)
    assert grey.read(0).image.shape == (1, 4, 6)


def test_patterns_name_the_same_shards(tmp_path):
    for name in "ab":
        shard(tmp_path / f"{name}.tar", three(ord(name)))
    (tmp_path / ".hidden.tar").write_bytes(b"not a shard")
    specs = ("", "/*.tar", "/{a,b}.tar", "/[ab].tar", "/{a..b,a,b}.tar"[:0] + "/?.tar")
    prints = {open_source(f"wds:{tmp_path}{spec}").fingerprint() for spec in specs}
    assert len(prints) == 1
    assert open_source(f"wds:{tmp_path}/{{b,a}}.tar").fingerprint() not in prints


def test_a_sample_is_what_shares_a_name_up_to_the_first_dot(tmp_path):
    members = {
        "deep/a.b/one.seg.png": png(1),
        "deep/a.b/one.JPG": png(2),
        "deep/a.b/one.json": b'{"label": "cat", "caption": "a cat"}',
        "deep/a.b/two.txt": b" ein Hund\n",
        "deep/a.b/two.webp": png(3),
        "deep/a.b/two.cls": b"dog",
        "README": b"no dot",
        ".hidden.png": png(4),
        "meta.json": b"{}",
    }
    source = open_source(f"wds:{shard(tmp_path / 'x.tar', members)}")
    assert [source.id(i) for i in range(2)] == ["x.tar/deep/a.b/one.jpg", "x.tar/deep/a.b/two.webp"]
    assert source.classes == ("cat", "dog")
    assert source.captioned
    assert [source.text(i) for i in range(2)] == ["a cat", "ein Hund"]
    assert source.read(0).text == "a cat"
    assert source.read(0).image[0, 0, 0] == 2
    masks = open_source(f"wds:{tmp_path / 'x.tar'},image=seg.png")
    assert len(masks) == 1
    assert masks.read(0).image[0, 0, 0] == 1
    with pytest.raises(ValueError, match=r"no sample has an image.*image=EXT"):
        open_source(f"wds:{tmp_path / 'x.tar'},image=tif")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(tmp_path, format):
    name = "ordner/" + "ä" * 120
    path = shard(tmp_path / "x.tar", {f"{name}.png": png(7), f"{name}.cls": b"3"}, format)
    source = open_source(f"wds:{path}")
    assert source.id(0) == f"x.tar/{name}.png"
    assert source.read(0).label == 0
    assert source.classes == ("3",)


def test_captions_must_be_everywhere(tmp_path):
    path = shard(tmp_path / "x.tar", {"a.png": png(1), "a.txt": b"a", "b.png": png(2)})
    source = open_source(f"wds:{path}")
    assert not source.captioned
    assert source.read(1).text is None
    path = shard(tmp_path / "y.tar", {"a.png": png(1), "a.txt": b"a", "b.png": b"x", "b.txt": b" "})
    source = open_source(f"wds:{path}")
    assert source.captioned
    with pytest.raises(BadSampleError, match="caption is blank"):
        source.read(1)


def test_splits(tmp_path):
    shard(tmp_path / "f" / "train-0.tar", three(0))
    shard(tmp_path / "f" / "val-0.tar", three(50))
    for spec in (f"wds:{tmp_path / 'f'}", f"wds:{tmp_path}/f/train-0.tar,test=val-*.tar"):
        assert open_source(spec).id(0) == "train-0.tar/0000.png"
        assert open_source(spec, "test").id(0) == "val-0.tar/0050.png"
    with pytest.raises(NoTestSplitError, match="test=PATTERN"):
        open_source(f"wds:{tmp_path}/f/train-*.tar", "test")
    with pytest.raises(ValueError, match="both for training and"):
        open_source(f"wds:{tmp_path}/f/*.tar,test=val-0.tar")
    shard(tmp_path / "f" / "more.tar", three(80))
    with pytest.raises(ValueError, match=r"more\.tar is not"):
        open_source(f"wds:{tmp_path / 'f'}")
    shard(tmp_path / "g" / "train" / "0.tar", three(0))
    shard(tmp_path / "g" / "test" / "0.tar", three(60))
    assert open_source(f"wds:{tmp_path / 'g'}").read(0).image[0, 0, 0] == 0
    assert open_source(f"wds:{tmp_path / 'g'}", "test").read(0).image[0, 0, 0] == 60


def test_other_words_for_splits(tmp_path):
    shard(tmp_path / "f" / "x-Training-0.tar", three(0))
    shard(tmp_path / "f" / "x-dev0.tar", three(50))
    assert open_source(f"wds:{tmp_path / 'f'}", "test").id(0) == "x-dev0.tar/0050.png"
    shard(tmp_path / "g" / "TRAIN" / "0.tar", three(0))
    shard(tmp_path / "g" / "eval" / "0.tar", three(60))
    assert open_source(f"wds:{tmp_path / 'g'}").read(0).image[0, 0, 0] == 0
    assert open_source(f"wds:{tmp_path / 'g'}", "test").read(0).image[0, 0, 0] == 60
    (tmp_path / "g" / "test").mkdir()
    with pytest.raises(ValueError, match=r"^wds:.*'eval' and 'test' of .* stand for 'test'"):
        open_source(f"wds:{tmp_path / 'g'}")


def test_class_names(tmp_path):
    shard(tmp_path / "train-0.tar", {"a.png": png(0), "a.cls": b"2", "b.png": png(1)})
    shard(tmp_path / "test-0.tar", {"a.png": png(0), "a.cls": b"1"})
    with pytest.raises(ValueError, match="class '1', which training lacks"):
        open_source(f"wds:{tmp_path}", "test")
    (tmp_path / "classes.json").write_text(json.dumps(["x", "y", "z"]))
    train, test = (open_source(f"wds:{tmp_path}", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("x", "y", "z")
    assert (train.label(0), train.label(1), test.label(0)) == (2, None, 1)
    (tmp_path / "two.json").write_text(json.dumps(["x", "y"]))
    with pytest.raises(ValueError, match="class '2', which is none of"):
        open_source(f"wds:{tmp_path},classes=two.json")
    (tmp_path / "two.json").write_text('{"x": 1}')
    with pytest.raises(ValueError, match="JSON list of names"):
        open_source(f"wds:{tmp_path},classes=two.json")


def test_numbers_are_in_their_order_and_negative_ones_are_none(tmp_path):
    labels = {"a": b"10", "b": b"9", "c": b"-1", "d": b"09"}
    members = {f"{k}.{s}": d for k, v in labels.items() for s, d in (("png", png(1)), ("cls", v))}
    source = open_source(f"wds:{shard(tmp_path / 'x.tar', members)}")
    assert source.classes == ("09", "9", "10")
    assert [source.label(i) for i in range(4)] == [2, 1, None, 0]


def test_arrays_keep_their_channels_and_bits(tmp_path):
    pixels = np.arange(5 * 7 * 8, dtype=np.uint16).reshape(5, 7, 8) * 200
    evil = np.array([{"a": 1}], dtype=object)
    members = {"a.npy": npy(pixels), "b.npy": npy(pixels.transpose(1, 2, 0))}
    members |= {"c.npy": npy(evil), "d.npy": npy(pixels)[:-2], "e.npy": npy(pixels[:2])}
    source = open_source(f"wds:{shard(tmp_path / 'x.tar', members)}")
    assert (source.channels, source.bits) == (5, 16)
    for index in (0, 1):
        read = source.read(index).image
        assert read.dtype == torch.uint16
        assert np.array_equal(read.numpy(), pixels)
    for index, why in ((2, "object"), (3, "promises"), (4, "shape")):
        with pytest.raises(BadSampleError, match=why):
            source.read(index)


@pytest.mark.parametrize("kept", [0.45, 0.5, 0.55, 0.62, 0.8])
def test_a_cut_off_shard_gives_what_came_before(tmp_path, caplog, kept):
    whole = shard(tmp_path / "whole.tar", three(0) | three(10))
    with tarfile.open(whole) as tar:
        starts = {m.name: m.offset for m in tar if m.name.endswith("png")}
        end = tar.offset
    cut = int(end * kept)
    path = tmp_path / "cut.tar"
    path.write_bytes(whole.read_bytes()[:cut])
    source = open_source(f"wds:{path}")
    begun = sum(start + 512 <= cut for start in starts.values())
    whole_ones = begun if "no end mark" in caplog.text else begun - 1
    assert len(source) == begun
    for index in range(whole_ones):
        assert source.read(index).image[0, 0, 0] == int(source.id(index)[8:12])
    for index in range(whole_ones, begun):
        with pytest.raises(BadSampleError, match="cut off"):
            source.read(index)
    assert (whole_ones == begun) == (kept == 0.5)
    assert "cut.tar" in caplog.text


def test_damage_in_the_middle_is_told(tmp_path, caplog):
    path = shard(tmp_path / "x.tar", three(0) | three(10))
    with tarfile.open(path) as tar:
        at = tar.getmember("0010.png").offset
    data = bytearray(path.read_bytes())
    data[at : at + 512] = b"\xff" * 512
    path.write_bytes(data)
    source = open_source(f"wds:{path}")
    assert len(source) == 3
    assert f"damaged at byte {at:,}" in caplog.text
    source.read(1)


@pytest.mark.parametrize("size", [-512, -100])
def test_a_size_below_zero_is_damage(tmp_path, caplog, size):
    """tarfile without the fix of CVE-2025-8194 reads one header for ever."""
    path = shard(tmp_path / "x.tar", three(0) | three(10))
    with tarfile.open(path) as tar:
        at = tar.getmember("0010.png").offset
    data = bytearray(path.read_bytes())
    data[at + 124 : at + 136] = (256**12 + size).to_bytes(12, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    assert len(open_source(f"wds:{path}")) == 3
    assert f"damaged at byte {at:,}" in caplog.text or "negative" in caplog.text


def test_braces_of_an_option_keep_their_commas(tmp_path):
    for name in ("train", "a", "b"):
        shard(tmp_path / f"{name}-0.tar", three(0))
    spec = f"wds:{tmp_path}/train-0.tar,test={{a,b}}-0.tar"
    assert len(open_source(spec, "test")) == 6


def test_the_index_is_found_again_and_made_again(tmp_path, cache, monkeypatch):
    paths = [shard(tmp_path / f"{i}.tar", three(10 * i)) for i in range(3)]
    first = open_source(f"wds:{tmp_path}/?.tar")
    looked_at = []
    original = tar_index.index_shard
    monkeypatch.setattr(
        tar_index, "index_shard", lambda *args: looked_at.append(args[0]) or original(*args)
    )
    again = open_source(f"wds:{tmp_path}/?.tar")
    assert not looked_at
    assert again.fingerprint() == first.fingerprint()
    assert [again.id(i) for i in range(9)] == [first.id(i) for i in range(9)]
    shard(paths[1], three(10) | {"9999.png": png(99), "9999.cls": b"5"})
    changed = open_source(f"wds:{tmp_path}/?.tar")
    assert looked_at == [paths[1]]
    assert changed.fingerprint() != first.fingerprint()
    assert changed.id(6) == "1.tar/9999.png"
    assert changed.read(6).image[0, 0, 0] == 99
    assert changed.read(7).image[0, 0, 0] == 20
    assert [changed.label(i) for i in range(10)] == [0, 1, 0, 0, 1, 0, 2, 0, 1, 0]
    for file in (cache / "wds").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert open_source(f"wds:{tmp_path}/?.tar").fingerprint() == changed.fingerprint()
    assert len(looked_at) == 4


def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(tmp_path, monkeypatch, caplog):
    path = shard(tmp_path / "x.tar", three(0))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(f"wds:{path}")) == 3
    assert "cannot be written" in caplog.text


def test_it_crosses_processes(tmp_path):
    source = open_source(f"wds:{shard(tmp_path / 'x.tar', three(0))}")
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(2).image, source.read(2).image)


def test_a_shard_that_is_gone_makes_bad_samples(tmp_path):
    path = shard(tmp_path / "x.tar", three(0) | {"0000.txt": b"x"})
    source = open_source(f"wds:{path}")
    path.unlink()
    with pytest.raises(BadSampleError, match="No such file"):
        source.read(0)


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("http://host/{0..9}.tar", "http: is not a local file"),
        ("pipe:curl -s x.tar", "pipe: is not a local file"),
        ("train.tar.gz", "unpack"),
        ("missing-{0..2}.tar", "there is no file .*missing-0.tar"),
        ("x*.tar", "there is no match"),
        ("{9..1}.tar", "must run upwards"),
        ("{0..99999999999}.tar", "at most"),
        ("", "names no shards"),
        ("a.tar,size=3", "unknown option 'size'"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, rest, why):
    monkeypatch.chdir(tmp_path)
    for spec in (f"wds:{rest}", resolve_spec(f"wds:{rest}")):
        with pytest.raises(ValueError, match=why):
            open_source(spec)


def test_files_that_are_no_tar_are_refused_by_name(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(shard(tmp_path / "b", three(0)).read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar is not a tar file.*gunzip"):
        open_source(f"wds:{tmp_path / 'a.tar'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no shards in"):
        open_source(f"wds:{tmp_path / 'empty'}")


def test_links_and_odd_paths_are_only_names(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../out.png")
        info.size = len(png(1))
        tar.addfile(info, io.BytesIO(png(1)))
    source = open_source(f"wds:{path}")
    assert len(source) == 1
    assert source.read(0).id == "x.tar/../../out.png"
    assert not list(tmp_path.parent.glob("**/out.png"))
