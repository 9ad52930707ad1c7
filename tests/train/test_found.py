"""Tests that a run says what it found before its first step, in found.json and on its page."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from vitrail import api
from vitrail.cli import main
from vitrail.config import printable
from vitrail.data.contract import Header
from vitrail.data.sources.registry import open_source
from vitrail.data.tokenizer import Tokenizer
from vitrail.data.tools import found

STATS = ["--objective.views.mean", ".5", ".5", ".5", "--objective.views.std", ".3", ".3", ".3"]
SHORT = ["--channels", "3", *STATS, "--workers", "0", "--steps", "1", "--batch-size", "4"]
ODD = "b\x1b[31mred\x1b[0m\u202e.txt"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("found") / "data"
    rng = np.random.default_rng(0)
    for i in range(6):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (16 + i, 20 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / ODD).write_text("x")
    return root


@pytest.fixture(scope="module")
def run(data):
    out = data / "run"
    main(["pretrain", "simdino_digits", "--data", f"folder:{data}", "--out", str(out), *SHORT])
    return out


def test_found_json(run, data):
    known = json.loads((run / "found.json").read_text())
    assert known["images"] == 6
    assert (known["channels"], known["bits"]) == (3, 8)
    assert known["sizes"] == {"smallest": [21, 15], "median": [18, 18], "measured": 6}
    assert known["modes"] == {"RGB": 6}
    assert (known["classes"], known["unlabelled"]) == (2, 0)
    assert known["test"].startswith("none")
    [note] = known["notes"]
    assert note.startswith("1 file left out")
    assert known["lines"] == [
        f"folder:{data}: 6 images, read as 3 channels of 8 bits",
        "height x width: smallest 21 x 15, median 18 x 18 (headers of 6: RGB 6)",
        "2 classes (a, b)",
        "test split: none: an evaluation holds a fifth of the samples out",
    ]


def test_the_page_shows_it(run):
    page = api.report(run).read_text()
    assert "read as 3 channels of 8 bits" in page
    assert "1 file left out" in page
    assert "\x1b" not in page
    (run / "found.json").write_text('{"lines": 3, "notes": "x"}')
    assert "<h1>" in api.report(run).read_text()


def test_a_run_in_the_data_goes_on_and_is_said(run, data, caplog):
    with caplog.at_level(logging.WARNING):
        main(["resume", str(run)])
    assert "that vitrail has written" in caplog.text
    assert len(open_source(f"folder:{data}")) == 6


def test_names_on_a_terminal_are_safe(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["stats", f"folder:{data}/{ODD}"])
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"b\x1b[31mred\x1b[0m\u202e.txt" in said
    record = logging.makeLogRecord({"msg": f"x {ODD}\nand more"})
    assert logging.lastResort.format(record) == f"x {printable(ODD)}\nand more"


def test_printable_keeps_words_of_any_language():
    text = "é 猫 \N{GRINNING FACE} 'quoted' \\x1b\nnext"
    assert printable(text) == text
    assert printable("\x1b]0;title\x07\x9b\r\udcff") == r"\x1b]0;title\x07\x9b\r\udcff"


def test_supervised_without_labels_names_the_reason(data, tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(data / "cover.png")
    spec = f"folder:{data}"
    with pytest.raises(SystemExit):
        main(["pretrain", "crate_digits_supervised", "--data", spec, "--out", str(tmp_path / "r"),
              *SHORT])  # fmt: skip
    (data / "cover.png").unlink()
    assert "the source has none (1 image is in no class folder (cover.png)" in (
        capsys.readouterr().err
    )


def test_headers_of_a_few_blocks_only(monkeypatch):
    source = open_source("digits", quiet=True)
    asked: list[int] = []
    monkeypatch.setattr(source, "blocks", lambda: [range(a, a + 100) for a in range(0, 1700, 100)])
    monkeypatch.setattr(
        source, "header", lambda index: asked.append(index) or Header(8, 8, "uint8")
    )
    known = found.find(source)
    assert len(asked) == found.MEASURED
    assert len({index // 100 for index in asked}) == found.BLOCKS
    assert known["test"] == len(open_source("digits", "test"))


# ---- captions


@pytest.mark.parametrize("context", [3, 8, 20, 77])
def test_captions_longer_than_the_context_are_counted(context):
    texts = ["a cat", "a " * 40, "\u0130" * 9, "", "word " * 12, "x" * 17, "x" * 18, "é" * 30]
    tokenizer = Tokenizer.train(texts[:3], 300)
    whole = [len(ids) for ids in tokenizer.encode(texts, 10_000)]
    assert tokenizer.count_longer(texts, context) == sum(length > context for length in whole)
    assert all(len(ids) <= context for ids in tokenizer.encode(texts, context))
