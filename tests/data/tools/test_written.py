"""Tests that files which were overwritten since a run began are noticed, and a copy is not."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from vitrail.data.sources.registry import open_source
from vitrail.data.tools.written import NAME, check_written, record_written


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(b"old")
        os.utime(root / f"{i}.png", ns=(10**18 + i, 10**18 + i))
    return root


@pytest.fixture
def run(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    record_written(run, source(data))
    return run


def source(root):
    return open_source(f"folder:{root}", quiet=True)


def test_nothing_changed(run, data):
    assert check_written(run, source(data)) is None


@pytest.mark.parametrize("files", [["1.png"], ["0.png", "1.png", "2.png", "3.png"]])
def test_overwritten_in_place_with_the_same_size(run, data, files):
    before = source(data).fingerprint()
    for name in files:
        (data / name).write_bytes(b"new")
    assert source(data).fingerprint() == before
    said = f"{len(files)} of 4 files were written .*{files[0]}.*{NAME}"
    with pytest.raises(ValueError, match=said):
        check_written(run, source(data))
    (run / NAME).unlink()
    check_written(run, source(data))


def test_replaced_by_another_file_of_the_same_size(run, data):
    (data / "new").write_bytes(b"new")
    os.replace(data / "new", data / "2.png")
    with pytest.raises(ValueError, match="1 of 4 files"):
        check_written(run, source(data))


def test_a_copy_that_keeps_times_is_the_same(run, data, tmp_path):
    shutil.copytree(data, tmp_path / "copy")
    assert check_written(run, source(tmp_path / "copy")) is None


def test_a_copy_with_new_times_is_said(run, data, tmp_path):
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    assert "as those of a copy" in check_written(run, source(tmp_path / "copy"))


@pytest.mark.parametrize("content", ["", "{", "3", '[["0.png"]]', "null"])
def test_a_damaged_record_is_as_none(run, data, content):
    (run / NAME).write_text(content)
    check_written(run, source(data))


def test_shards_and_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    assert open_source(f"npy:{tmp_path}/x.npy").written() == (), "its fingerprint is of all pixels"
    shard, picture = tmp_path / "0.tar", tmp_path / "x.png"
    picture.write_bytes(b"x")
    with tarfile.open(shard, "w") as tar:
        tar.add(picture, "x.png")
    [[name, time, inode]] = json.loads(json.dumps(open_source(f"wds:{shard}").written()))
    assert (name, time) == ("0.tar", shard.stat().st_mtime_ns)
    assert inode == shard.stat().st_ino
