"""Pretraining on a folder as people have them: what is bad is named, what is good is used."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli import shell
from tests.cli.shell import assert_refused, pretrain, vitrail

ODD_NAMES = [
    "q\"uo'te.png",
    "new\nline.png",
    "<script>alert(1)<.png",
    "ünï-画像.png",
    " space .png",
]


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(height * width).integers(0, np.iinfo(dtype).max, shape, dtype)


def good_files(folder: Path) -> set[str]:
    """Every kind of picture that must be read. Returns their ids."""
    (folder / "nested" / "deeper").mkdir(parents=True)
    rgb = Image.fromarray(noise(24, 40))
    pictures = {
        "photo.jpg": rgb,
        "LOUD.JPEG": Image.fromarray(noise(64, 33)),
        "nested/web.webp": rgb,
        "nested/grey.png": Image.fromarray(noise(9, 70, 1)),
        "nested/deeper/alpha.png": Image.fromarray(noise(20, 20, 4), "RGBA"),
        "palette.png": rgb.convert("P"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "sixteen.png": Image.fromarray(noise(17, 18, 1, np.uint16)),
        "pixel.png": Image.fromarray(noise(1, 1)),
        "two.gif": rgb.convert("P"),
    }
    pictures |= {f"more{i}.png": Image.fromarray(noise(8 + i, 30)) for i in range(20)}
    pictures |= {name: Image.fromarray(noise(12 + i, 16)) for i, name in enumerate(ODD_NAMES)}
    for name, image in pictures.items():
        image.save(folder / name)
    return set(pictures)


def png_bomb(side: int) -> bytes:
    """A whole PNG header, and pixel data that never come near the size it promises."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(side * 100), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def bad_files(folder: Path) -> dict[str, str]:
    """Every kind of file that cannot be used: id -> a word of the reason."""
    whole = {s: folder / f"photo{s}" for s in (".jpg", ".png")}
    Image.fromarray(noise(64, 64)).save(whole[".png"])
    jpeg, png = (folder / "photo.jpg").read_bytes(), whole[".png"].read_bytes()
    whole[".png"].unlink()
    contents = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged"),
        "cut.png": (png[: len(png) // 2], "damaged"),
        "text.jpg": (b"not a picture at all", "not an image"),
        "nested/empty.png": (b"", "empty"),
        "bomb.png": (png_bomb(30_000), "more pixels than the limit"),
        'bad\n<b>name".jpg': (b"x", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    os.symlink(folder / "nowhere", folder / "link.jpg")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.jpg").mkdir()  # a folder is not a file: looked into, and empty
    (folder / "notes.txt").write_text("not looked at")
    reasons = {name: reason for name, (_, reason) in contents.items()}
    return reasons | {"link.jpg": "no such file", "pipe.png": "not a file"}


@pytest.fixture
def messy(tmp_path: Path) -> tuple[Path, set[str], dict[str, str]]:
    folder = tmp_path / "photos"
    good = good_files(folder)
    return folder, good, bad_files(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_messy_folder(messy, tmp_path, workers):
    folder, good, bad = messy
    data, run = f"folder:{folder}", tmp_path / "run"
    before = {name: (folder / name).read_bytes() for name in good}
    steps = -(-2 * (len(good) + len(bad)) // 8)  # two passes, so that each is met
    changes = ["--data", data, "--steps", steps, "--workers", workers]
    code, _, err = pretrain(run, *changes)
    assert code == 0, err
    assert "Traceback" not in err

    entries = shell.read_lines(run / "quarantine.jsonl")
    assert {entry["id"] for entry in entries} == set(bad)
    assert len(entries) == len(bad)
    for entry in entries:
        assert bad[entry["id"]] in entry["reason"]
    assert {name: (folder / name).read_bytes() for name in good} == before

    features = tmp_path / "all.npz"
    assert vitrail("embed", run, "--out", features).code == 0
    with np.load(features, allow_pickle=False) as arrays:
        assert set(arrays["ids"].tolist()) == good
        assert arrays["features"].shape == (len(good), 64)
        assert np.isfinite(arrays["features"]).all()
        assert set(arrays["labels"].tolist()) == {-1}

    code, out, err = vitrail("evaluate", run)
    assert code == 0, err
    assert "no labels" in out
    results = json.loads((run / "evaluation.json").read_text())
    assert results["n_train"] + results["n_test"] <= len(good) + len(bad)
    assert_refused(vitrail("evaluate", run, "--protocols", "knn"), "knn", "no labels", "--data")
    assert vitrail("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "<b>name" not in page
    assert "<script>alert" not in page


def test_workers_and_none_take_the_same_steps(messy, tmp_path):
    folder, _, _ = messy
    for workers in (0, 2):
        assert (
            pretrain(
                tmp_path / str(workers), "--data", f"folder:{folder}", "--workers", workers
            ).code
            == 0
        )
    weights = [(tmp_path / w / "encoder.safetensors").read_bytes() for w in "02"]
    assert weights[0] == weights[1]


def test_colour_pictures_with_three_channels(messy, tmp_path):
    folder, _, _ = messy
    means = ["--channels", 3, "--objective.views.mean", 0.5, 0.5, 0.5]
    means += ["--objective.views.std", 0.3, 0.3, 0.3, "--objective.views.jitter", 0.8]
    assert pretrain(tmp_path / "run", "--data", f"folder:{folder}", *means).code == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_stop_the_run_and_what_was_saved_stays(messy, tmp_path, workers):
    folder, good, bad = messy
    run, total = tmp_path / "run", len(good) + len(bad)
    changes = ["--data", f"folder:{folder}", "--steps", 14, "--checkpoint-every", 1]
    changes += ["--workers", workers, "--max-bad-fraction", 6.5 / total]
    outcome = pretrain(run, *changes)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-2:]
    assert last[0].startswith(f"vitrail: error: 7 of {total} samples cannot be used")
    assert "quarantine.jsonl" in last[0]
    assert "max_bad_fraction" in last[0]
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())[-1]
    assert saved in last[1]
    assert f"vitrail resume {run}" in last[1]
    assert "Traceback" not in outcome.err

    # Allowing more goes on from there, with the steps of a run that never stopped.
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"max_bad_fraction": 0.5}))
    assert vitrail("resume", run).code == 0
    assert pretrain(tmp_path / "whole", *changes, "--max-bad-fraction", 0.5).code == 0
    weights = [(r / "encoder.safetensors").read_bytes() for r in (run, tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_nothing_but_bad_files(tmp_path):
    folder, run = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_text("not a picture")
    outcome = pretrain(run, "--data", f"folder:{folder}")
    assert outcome.code == 1
    assert "of 5 samples cannot be used" in outcome.err
    assert "Traceback" not in outcome.err
    # Repaired, the run goes on, since it had not begun.
    for path in folder.iterdir():
        path.unlink()
    for i in range(5):
        Image.fromarray(noise(10, 10)).save(folder / f"{i}.png")
    assert vitrail("resume", run).code == 0
