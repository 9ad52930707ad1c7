"""The benchmark of MaskCut measures, and refuses to where two solvers find different masks."""

import sys

import numpy as np
import pytest

from benchmarks import maskcut

COMMAND = "maskcut --device cpu --grids 24 --blocks 1 --scenes 2 --save"


def test_all_solvers_are_timed_and_the_tables_go_where_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(maskcut, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", COMMAND.split())
    maskcut.main()
    saved = (tmp_path / "results" / "maskcut_cpu.md").read_text()
    for way in maskcut.WAYS:
        assert saved.count(f"| eigenvector | {way} |") == 3
    assert saved.count("| 24×24 |") == 3 * (4 + 2) + 5
    assert "commit" in saved
    assert saved in capsys.readouterr().out


def test_other_masks_are_refused():
    masks = np.zeros((2, 20, 20), dtype=bool)
    masks[0, :10], masks[1, 10:] = True, True
    assert maskcut.least_iou(masks, masks) == 1
    other = masks.copy()
    other[1, 10, :3] = False
    with pytest.raises(maskcut.ParityError, match=r"IoU of 0\.985"):
        maskcut.least_iou(masks, other)
    with pytest.raises(maskcut.ParityError, match="2 masks against 1"):
        maskcut.least_iou(masks, masks[:1])
