"""`vitrail pack`: any tar program reads the result, a stopped pack continues, and the bytes are
the same every time."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.cli import main
from vitrail.data.sources.registry import open_source
from vitrail.data.tools import pack as packing_room
from vitrail.data.tools.encode import Packing, encode, resized
from vitrail.data.tools.pack import pack
from vitrail.data.tools.tar_writer import TarWriter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photographs(root: Path, count: int = 12, side: int = 40) -> str:
    """Two classes, each image of its own colour, some noise in it."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = root / ("cat", "dog")[number % 2] / f"{number}.v1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(path)
    return f"folder:{root}"


def members(folder: Path) -> dict[str, bytes]:
    """Returns the members as any tar program reads them."""
    read = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                read[member.name] = tar.extractfile(member).read()
    return read


@pytest.mark.parametrize("format", ["png", "raw"])
def test_digits_come_back_to_the_pixel(tmp_path, format):
    splits = pack("digits", tmp_path, Packing(format=format))
    assert [split.written for split in splits.values()] == [1297, 500]
    for name in ("train", "test"):
        packed = open_source(f"wds:{tmp_path}", name, channels=1)
        source = open_source("digits", name)
        assert packed.classes == source.classes
        assert len(packed) == len(source)
        order = [int(packed.id(i).split("_")[1].split(".")[0]) for i in range(len(packed))]
        assert sorted(order) == list(range(len(source)))
        assert (order == sorted(order)) == (name == "test")
        for position, index in list(enumerate(order))[::37]:
            read, own = packed.read(position), source.read(index)
            assert torch.equal(read.image, own.image)
            assert read.label == own.label


def test_photographs_are_made_smaller_and_keep_their_names(tmp_path):
    spec = photographs(tmp_path / "in")
    pack(spec, tmp_path / "out", Packing(size=20, quality=90))
    read = members(tmp_path / "out")
    jpegs = {name: data for name, data in read.items() if name.endswith(".jpg")}
    assert sorted(name.split("_", 1)[1] for name in jpegs) == sorted(
        f"{i}_v1.jpg" for i in range(12)
    )
    for name, data in jpegs.items():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("JPEG", (30, 20))
        number = int(name.split("_")[1])
        assert read[name[:-4] + ".cls"] == str(number % 2).encode()
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["cat", "dog"]
    assert open_source(f"wds:{tmp_path / 'out'}").classes == ("cat", "dog")


def test_captions_are_packed(tmp_path):
    photographs(tmp_path, 3)
    table = "path,caption,split\n" + "".join(
        f"{('cat', 'dog')[i % 2]}/{i}.v1.png,image {i} ä,{'test' if i == 2 else 'train'}\n"
        for i in range(3)
    )
    (tmp_path / "pairs.csv").write_text(table)
    pack(f"pairs:{tmp_path / 'pairs.csv'}", tmp_path / "out", Packing())
    train, test = (open_source(f"wds:{tmp_path / 'out'}", split) for split in ("train", "test"))
    assert train.captioned
    assert {train.text(i) for i in range(2)} == {"image 0 ä", "image 1 ä"}
    assert test.text(0) == "image 2 ä"
    assert train.classes is None


def test_many_channels_and_sixteen_bits_are_arrays(tmp_path):
    pixels = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)
    small = resized(pixels, 8)
    assert small.shape == (5, 8, 12)
    assert small.dtype == np.uint16
    # Antialiased: close to the mean of each 2 x 2, which for a ramp is what it stands for.
    means = pixels.reshape(5, 8, 2, 12, 2).mean((2, 4))
    assert np.abs(small[:, 2:-2, 2:-2] - means[:, 2:-2, 2:-2]).max() <= 1
    assert resized(pixels, 16) is pixels
    assert np.array_equal(np.load(io.BytesIO(encode(pixels, "npy", 95))), pixels)


def test_the_same_source_gives_the_same_bytes(tmp_path):
    spec = photographs(tmp_path / "in", count=40)
    for name, workers in (("a", 0), ("b", 2)):
        pack(spec, tmp_path / name, Packing(format="png"), workers=workers)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["classes.json", "pack.json", "train-000000.tar"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Killed(BaseException):
    pass


def test_a_pack_that_was_stopped_goes_on(tmp_path, monkeypatch):
    spec = photographs(tmp_path / "in", count=40, side=160)
    (tmp_path / "in" / "cat" / "bad.png").write_bytes(b"not an image")
    small = Packing(shard_mb=1, format="raw")  # 86,400 bytes an image, eleven a shard
    pack(spec, tmp_path / "whole", small)
    shards = sorted((tmp_path / "whole").glob("*.tar"))
    assert len(shards) == 4
    assert all(path.stat().st_size <= 10**6 for path in shards)

    added = 0
    original = TarWriter.add

    def add(self, key, members):
        nonlocal added
        added += 1
        if added == 20:
            raise Killed
        original(self, key, members)

    monkeypatch.setattr(TarWriter, "add", add)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        pack(spec, out, small)
    assert sorted(p.name for p in out.iterdir()) == ["classes.json", "pack.json", shards[0].name]
    with pytest.raises(ValueError, match="this pack is not finished"):
        open_source(f"wds:{out}")
    first = (out / shards[0].name).stat().st_mtime_ns
    pack(spec, out, small)
    assert added < 20 + 40 - 10, "the first shard is not made again"
    assert (out / shards[0].name).stat().st_mtime_ns == first
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert len(open_source(f"wds:{out}")) == 40
    before = added
    pack(spec, out, small)
    assert added == before, "what is finished is left alone"
    (out / shards[1].name).unlink()
    with pytest.raises(ValueError, match=f"its shard {shards[1].name} is not there"):
        pack(spec, out, small)


def test_bad_files_are_counted_and_named(tmp_path, capsys, caplog):
    caplog.set_level(logging.CRITICAL)
    spec = photographs(tmp_path / "in")
    for number in range(12):
        (tmp_path / "in" / "dog" / f"bad{number}.jpg").write_bytes(b"x")
    main(["pack", spec, "--out", str(tmp_path / "out"), "--workers", "0"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("train: 12 images in 1 shard, ")
    assert out[0].endswith(" MB; 12 left out:")
    assert out[1].startswith('  "dog/bad')
    assert len(out) == 1 + 10 + 2
    assert out[-1] == f"read it as wds:{tmp_path / 'out'}"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_bytes(b"x")
    with pytest.raises(SystemExit):
        main(["pack", f"folder:{tmp_path / 'none'}", "--out", str(tmp_path / "o")])
    assert "no image can be read (the first: a.jpg" in capsys.readouterr().err


def test_a_shard_that_meets_a_full_disk_is_removed(tmp_path):
    class Full(io.BytesIO):
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    def write() -> None:
        with TarWriter.none() as shard:
            shard.open(tmp_path / "train-000000.tar")
            shard._file = Full()
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert not list(tmp_path.iterdir())


def test_another_pack_is_refused(tmp_path):
    spec = photographs(tmp_path / "in", 4)
    out = tmp_path / "out"
    pack(spec, out, Packing(size=20))
    with pytest.raises(ValueError, match="another pack: size was 20 and is 30"):
        pack(spec, out, Packing(size=30))
    photographs(tmp_path / "in", 6)
    with pytest.raises(ValueError, match=r"the images of .* are not those"):
        pack(spec, out, Packing(size=20))
    with pytest.raises(ValueError, match="holds no pack"):
        pack(spec, tmp_path / "in", Packing())
    with packing_room._lock_folder(out), pytest.raises(ValueError, match="by another process"):
        pack(spec, out, Packing(size=20))
    with pytest.raises(ValueError, match=r"quality is 101; it must be in 1\.\.100"):
        Packing(quality=101)


def test_webdataset_reads_it(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs the webdataset package")
    pack("digits", tmp_path, Packing(format="png"))
    pairs = webdataset.WebDataset(str(tmp_path / "test-000000.tar"), shardshuffle=False)
    source = open_source("digits", "test")
    read = list(pairs.decode("rgb8").to_tuple("png", "cls"))
    assert len(read) == 500
    for index in range(0, 500, 50):
        assert read[index][1] == source.label(index)
        assert np.array_equal(read[index][0][..., 0], source.read(index).image[0].numpy())
