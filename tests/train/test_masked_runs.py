"""MAE and CRATE-MAE runs: stopped and resumed they end with the same bits, and leave pictures."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import runs
from vitrail import api
from vitrail.config import override
from vitrail.recipes.named import get_recipe
from vitrail.reporting.build import build_report
from vitrail.train import loop


@pytest.mark.parametrize("name", ["mae_digits", "crate_mae_digits"])
def test_stopped_and_resumed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {key: value for key, value in runs.TINY.items() if key != "backbone"}
    # Two slices of a batch: their loss is its mean.
    recipe = override(get_recipe(name), changes | {"patch_size": 4, "accumulate": 2})
    whole = api.start(recipe, tmp_path / "whole")
    draw = loop.draw_pictures

    def draw_and_stop(*arguments: object) -> None:
        draw(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "draw_pictures", draw_and_stop)
    stopped = api.start(recipe, tmp_path / "stopped")
    assert max((stopped / "checkpoints").glob("step-*")).name.endswith("3")
    monkeypatch.setattr(loop, "draw_pictures", draw)
    api.resume(stopped)
    runs.assert_equal_bits(runs.final_state(whole), runs.final_state(stopped))
    picture, again = (run / "figures" / "reconstruction.png" for run in (whole, stopped))
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(again)))
    page = build_report(whole).read_text(encoding="utf-8")
    assert 'alt="What it fills in: a grid of training images. ' in page


def test_methods_that_show_nothing_leave_no_pictures(tmp_path: Path) -> None:
    run = api.start(runs.tiny_recipe("simdino", steps=2), tmp_path / "run")
    assert not (run / "figures").exists()
