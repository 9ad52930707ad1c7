"""The command line called in this process, and tiny things to call it on."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Two steps of the demo's recipe made tiny: milliseconds, every part in play.
_TINY = """--steps 2 --batch-size 8 --backbone vit_nano_patch4_32 --device cpu --workers 0
    --objective.views.global-size 16 --objective.views.local-size 8 --objective.views.n-local 1
    --objective.hidden-dim 16 --objective.bottleneck-dim 8"""
_DINO = """--steps 2 --backbone vit_nano_patch4_28 --device cpu --data digits --precision fp32
    --objective.out-dim 32 --objective.hidden-dim 16 --objective.bottleneck-dim 8"""
TINY, DINO = _TINY.split(), _DINO.split()


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def vitrail(*arguments: object) -> Outcome:
    """Runs one command. Whatever is not an exit is a traceback for the user: it fails the test."""
    from vitrail.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def pretrain(run: Path, *changes: object, recipe: str = "simdino_digits") -> Outcome:
    """Two tiny steps. Later changes win over earlier ones."""
    return vitrail("pretrain", recipe, "--out", run, *(TINY if "sim" in recipe else DINO), *changes)


def assert_refused(outcome: Outcome, *words: str) -> None:
    """Exit 1 and one message that holds these words, and nothing else on the terminal."""
    code, out, err = outcome
    assert code == 1, outcome
    assert err.startswith("vitrail: error: "), err
    assert err.count("vitrail: error") == 1, err
    assert "Traceback" not in err, err
    assert len(err.splitlines()) <= 2, err
    assert out == "", out
    for word in words:
        assert word in err, f"{word!r} is not in: {err}"


def make_photos(folder: Path, count: int = 12, side: int = 20) -> Path:
    """A flat folder of small RGB pictures."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
