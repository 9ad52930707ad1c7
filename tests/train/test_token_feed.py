"""The loop trains anything: tokens instead of images, integers that reach `after_step`, sinks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.processes import on_ranks
from tests.train import runs, tokens
from vitrail.registry import register, resolve
from vitrail.train import checkpoint
from vitrail.train.contract import Sink
from vitrail.train.registry import SINKS, SinkRow

RECIPE = tokens.TokenRecipe()
CPU = torch.device("cpu")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state_of(run: Path) -> dict[str, Any]:
    state = checkpoint.load_latest(run / "checkpoints", CPU)
    assert state is not None
    return state


def test_tokens_train_and_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tokens.run(whole, RECIPE)
    tokens.run(cut, RECIPE, stop_after=4)
    assert state_of(cut)["step"] == 5
    tokens.run(cut, RECIPE)
    runs.assert_equal_bits(state_of(whole), state_of(cut))
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == list(range(12))
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_of(cut)]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert all(row["tokens_per_s"] > 0 and row["data_wait"] >= 0 for row in rows)
    assert "health" in rows[0]
    for row in rows:
        assert not {"images_per_s", "index"} & row.keys()
    exported = json.loads((whole / "tokens.json").read_text())
    assert exported == {"vocabulary": 17, "objective": "next_token", "step": 12}
    assert {path.name for path in whole.iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "tokens.json",
    }


def test_a_finished_run_exports_again_and_an_edited_or_changed_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.run(tmp_path, RECIPE)
    (tmp_path / "tokens.json").unlink()
    tokens.run(tmp_path, RECIPE)
    assert (tmp_path / "tokens.json").exists()
    with pytest.raises(ValueError, match=r"was edited after the run began \(seed: 0 -> 1\)"):
        tokens.run(tmp_path, replace(RECIPE, seed=1))
    monkeypatch.setattr(tokens.TokenFeed, "fingerprint", "2")
    with pytest.raises(ValueError, match=r"random tokens has changed .*\(40 blocks then, 40 now\)"):
        tokens.run(tmp_path, RECIPE)


def test_integers_reach_after_step_as_they_are_over_all_slices(tmp_path: Path) -> None:
    one = tokens.run(tmp_path / "one", RECIPE).objective
    two = tokens.run(tmp_path / "two", replace(RECIPE, accumulate=2)).objective
    assert isinstance(one, tokens.NextToken)
    assert isinstance(two, tokens.NextToken)
    assert all(index.dtype == torch.int64 and index.shape == (8,) for index in two.given)
    assert torch.equal(torch.stack(one.given), torch.stack(two.given))
    assert int(two.seen.sum()) == 12 * 8
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    parts = tokens.run(Path(folder) / "run", RECIPE)
    torch.save(torch.stack(parts.objective.given), f"{folder}/{rank}.pt")


def test_two_ranks_get_their_own_integers_and_take_the_steps_of_one(tmp_path: Path) -> None:
    one = tokens.run(tmp_path / "one", RECIPE).objective
    assert isinstance(one, tokens.NextToken)
    on_ranks(work, str(tmp_path))
    given = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(torch.cat(given, dim=1), torch.stack(one.given))
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("one", "run")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


class Lines:
    """A sink of another package: the steps that it was given, in a text file."""

    def __init__(self, run: Path, start: int):
        self.file = open(run / "steps.txt", "a")  # noqa: SIM115
        self.file.write(f"from {start}\n")

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.file.writelines(f"{row['step']}\n" for row in rows)

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("name", SINKS)
def test_every_sink_takes_rows_and_a_resumed_run_opens_it_again(name: str, tmp_path: Path) -> None:
    rows = [
        {"step": 0, "loss": 1.0, "health": {"effective_rank": 2.0}, "limited_by": "views"},
        {"step": 1, "loss": float("nan"), "warning": "text"},
    ]
    for start in (0, 1):
        sink = resolve(SINKS[name].open)(tmp_path, start)
        assert isinstance(sink, Sink)
        sink.write(rows[start:])
        sink.close()
    assert SINKS[name].summary


def test_a_foreign_sink_gets_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SINKS, "_registered", {})
    register("sink", "lines", SinkRow(open=Lines, summary="steps in a text file"))
    recipe = replace(RECIPE, steps=3, sinks=("lines", "tensorboard"))
    tokens.run(tmp_path, recipe)
    assert (tmp_path / "steps.txt").read_text() == "from 0\n0\n1\n2\n"
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))
    assert len(rows_of(tmp_path)) == 3


def test_a_sink_whose_package_is_missing_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SINKS, "_registered", {})
    register("sink", "elsewhere", SinkRow("no_such_package:Sink", "nowhere", extra="elsewhere"))
    tokens.run(tmp_path, replace(RECIPE, steps=3, sinks=("elsewhere",)))
    assert len(rows_of(tmp_path)) == 3
    line = " ".join(capfd.readouterr().err.split())
    assert "nothing is logged to elsewhere (No module named 'no_such_package')" in line
    assert "pip install 'vitrail[elsewhere]'" in line


def test_an_unknown_sink_is_refused_before_the_run_is_made(tmp_path: Path) -> None:
    from vitrail import api

    recipe = runs.tiny_recipe("dino", sinks=["tensorbord"])
    with pytest.raises(ValueError, match=r"'tensorbord' is not a sink.*'tensorboard'"):
        api.start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
