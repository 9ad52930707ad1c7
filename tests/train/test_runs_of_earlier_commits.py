"""Runs that an earlier commit made go on, and what it evaluated is read (design, invariant 9).

The folders are those of commit c718dfc: recipes made tiny, killed after step 9 with a checkpoint of
step 8. To the bit they go on only on the processor that made them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitrail
from vitrail.evals.evaluate import evaluate
from vitrail.reporting.build import build_report

RUNS = Path(__file__).parent / "runs_c718dfc"
EVALUATED = Path(__file__).parents[1] / "evals" / "evaluation_c718dfc"
STEPS, SAVED = 20, 8


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["supervised", "simdino", "swav"])
def test_a_killed_run_goes_on(name, tmp_path):
    run = tmp_path / name
    shutil.copytree(RUNS / name, run)
    before = rows(run)
    assert vitrail.resume(run) == run
    after = rows(run)
    assert [row["step"] for row in after] == list(range(STEPS))
    assert after[:SAVED] == before[:SAVED]
    # The state is the one that was saved: the loss of the first step after it is the loss that the
    # earlier commit wrote for this step. A wrong weight moves it in the first or second digit.
    assert after[SAVED]["loss"] == pytest.approx(before[SAVED]["loss"], rel=1e-4)
    assert after[SAVED]["lr"] == before[SAVED]["lr"]
    assert vitrail.load(run).transform(np.zeros((1, 16, 16), dtype=np.uint8)).shape == (1, 32)


def test_an_evaluation_is_read_and_its_results_are_reused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(EVALUATED, run)
    before = json.loads((run / "evaluation.json").read_text())
    monkeypatch.setattr(
        "vitrail.evals.classification.linear.linear",
        lambda *_: pytest.fail("linear is measured again although its settings are the same"),
    )
    evaluate(run, protocols=("knn",))
    after = json.loads((run / "evaluation.json").read_text())
    assert after["linear"] == before["linear"]
    assert after["linear_10_per_class"] == before["linear_10_per_class"]
    page = build_report(run).read_text(encoding="utf-8")
    assert f"{100 * before['linear']['trained']:.1f}" in page
