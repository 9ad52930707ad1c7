"""The benchmark of Sinkhorn codes measures, and refuses to where the two sides are not the same."""

import sys

import pytest

from benchmarks import sinkhorn

COMMAND = "sinkhorn --rows 12 --prototypes 5 --blocks 1 --calls 1 --save"


def test_both_sides_agree_are_timed_and_the_table_goes_where_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sinkhorn, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sinkhorn, "keep_freed_memory", lambda: None)  # it lasts
    monkeypatch.setattr(sys, "argv", COMMAND.split())
    sinkhorn.main()
    saved = (tmp_path / "results" / "sinkhorn_cpu.md").read_text()
    assert saved.count("| 12 × 5 |") == 2
    assert "commit" in saved
    assert capsys.readouterr().out in saved


def test_another_number_of_iterations_is_refused():
    scores = sinkhorn.make_scores(12, 5)
    codes = sinkhorn.published(scores, 0.05, 3)
    assert sinkhorn.require_parity(codes, sinkhorn.sinkhorn(scores, 0.05, 3)) < 1e-6
    with pytest.raises(sinkhorn.ParityError, match="not timed"):
        sinkhorn.require_parity(codes, sinkhorn.sinkhorn(scores, 0.05, 1))
