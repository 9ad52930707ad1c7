"""Notes on files that lose bits or pages when they are read with 8 bits and one page."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from vitrail.data.decode import declared
from vitrail.data.decode.image import decode_bytes
from vitrail.data.sources import registry
from vitrail.data.sources.registry import open_source

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(declared, "_said", set())
    monkeypatch.setattr(registry, "_LOGGED", set())


def deep(*shape: int) -> np.ndarray:
    return RNG.integers(0, 65536, shape, dtype=np.uint16)


def write(folder) -> None:
    tifffile.imwrite(folder / "a.tif", deep(9, 8))
    tifffile.imwrite(folder / "b.tif", (deep(9, 8) >> 8).astype(np.uint8))
    tifffile.imwrite(folder / "c.tif", (deep(5, 9, 8) >> 8).astype(np.uint8), metadata=None)
    Image.fromarray(deep(9, 8)).save(folder / "d.png")
    frames = [Image.new("L", (8, 9), value) for value in (0, 255)]
    frames[0].save(folder / "e.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 9)).save(folder / "f.jpg")
    (folder / "g.tif").write_bytes(b"II*\0 damaged")
    os.mkfifo(folder / "h.png")


def test_a_folder_says_what_8_bits_and_one_page_lose(tmp_path, caplog):
    write(tmp_path)
    spec = f"folder:{tmp_path}"
    open_source(spec, "train", 3)
    deep_line, pages_line = caplog.messages
    assert "2 of 7 files looked at have 16 bits a value and are read with 8" in deep_line
    assert f"{spec},bits=16 keeps them" in deep_line
    assert "2 of 7 files looked at have several pages or frames" in pages_line
    assert "--channels N keeps N pages" in pages_line
    caplog.clear()
    open_source(spec, "train", 3)  # said once
    assert not caplog.messages
    open_source(f"{spec},bits=16", "train", 3)
    (line,) = caplog.messages
    assert "pages" in line


def test_nothing_is_said_where_nothing_is_lost(tmp_path, caplog):
    Image.new("RGB", (8, 9)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", deep(5, 9, 8), metadata=None)
    open_source(f"folder:{tmp_path},bits=16", "train", 5)
    assert not caplog.messages


def test_files_in_memory_say_it_once_for_each_kind(tmp_path, caplog, monkeypatch):
    write(tmp_path)
    for name in "aadcef":
        (path,) = tmp_path.glob(f"{name}.*")
        decode_bytes(path.read_bytes(), 3, path.name)
    assert [line.partition(",")[0] for line in caplog.messages] == ["a.tif", "c.tif"]
    monkeypatch.setattr(declared, "_said", set())
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    decode_bytes((tmp_path / "a.tif").read_bytes(), 3, "a.tif")
    assert not caplog.messages
