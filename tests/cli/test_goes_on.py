"""A run is made longer, follows its data, and goes on when its own command is given again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.shell import assert_refused, make_photos, pretrain, read_lines, vitrail
from vitrail.train import checkpoint

_TINY_HEAD = """--batch-size 8 --device cpu --workers 0 --guard-drop None
    --objective.views.global-size 16 --objective.hidden-dim 16 --objective.bottleneck-dim 8"""
TINY_HEAD = _TINY_HEAD.split()
SETTINGS = ["--checkpoint-every", 1, "--optim.warmup-epochs", 0]


def config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_lines(run / "metrics.jsonl")]


def weights(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, on 12 photographs, in a folder with them."""
    root = tmp_path_factory.mktemp("begun")
    make_photos(root / "photos")
    rgb = ["--channels", 3, "--objective.views.mean", *[0.5] * 3, "--objective.views.std", *[1] * 3]
    words = ["--data", f"folder:{root / 'photos'}", *rgb, *SETTINGS]
    assert pretrain(root / "run", *words).code == 0
    return root


@pytest.fixture
def root(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "root")
    return tmp_path / "root"


def test_a_finished_run_is_made_longer(root):
    run = root / "run"
    outcome = vitrail("resume", run, "--epochs", 3, "--data", f"folder:{root / 'photos'}")
    assert outcome.code == 0, outcome
    assert "length: 2 -> 4 steps (3 epochs). From step 2 on" in outcome.err
    assert steps(run) == [0, 1, 2, 3]  # 3 epochs of 12 images at 8 a step: 4.5 steps
    assert (config(run)["epochs"], config(run)["steps"]) == (3.0, None)
    [change] = config(run)["changes"]
    assert change["step"] == 2
    assert change["from"]["steps"] == 2
    assert change["to"]["epochs"] == 3.0
    assert vitrail("report", run).code == 0
    assert "After step 2 it was changed: " in (run / "report.html").read_text()
    # its checkpoints are of the longer run, and it may be made longer again
    assert "is finished" in vitrail("resume", run).err
    assert vitrail("resume", run, "--epochs", 4).code == 0
    assert steps(run) == list(range(6))


def test_a_longer_run_that_was_killed_before_it_saved_goes_on(root):
    run = root / "run"
    short = root / "short"
    shutil.copytree(run, short)
    data = ["--data", f"folder:{root / 'photos'}"]
    assert vitrail("resume", run, "--epochs", 3, *data).code == 0
    shutil.copy(run / "config.json", short / "config.json")  # written before the first new step
    assert vitrail("resume", short).code == 0
    assert weights(short) == weights(run)


def test_a_length_that_was_edited_by_hand_is_refused(root):
    run = root / "run"
    data = ["--data", f"folder:{root / 'photos'}"]
    assert vitrail("resume", run, "--epochs", 3, *data).code == 0
    (run / "config.json").write_text(json.dumps(config(run) | {"epochs": 7.0}))
    assert_refused(vitrail("resume", run), "was edited", "epochs: 3.0 -> 7.0")


def test_a_length_that_is_taken_already(root):
    data = ["--data", f"folder:{root / 'photos'}"]
    outcome = vitrail("resume", root / "run", "--epochs", 0.5, *data)
    assert outcome.code == 1
    assert "has taken 2 steps already, more than the 1" in outcome.err
    assert "changes" not in config(root / "run")
    assert_refused(vitrail("resume", root / "run", "--epochs", 0), "epochs is 0")


def test_data_that_moved(root):
    run, moved = root / "run", root / "elsewhere"
    (root / "photos").rename(moved)
    outcome = vitrail("resume", run, "--data", f"folder:{moved}")
    assert outcome.code == 0, outcome
    assert f"-> folder:{moved}" in outcome.err
    assert config(run)["data"] == f"folder:{moved}"
    assert json.loads((run / "encoder.json").read_text())["data"] == f"folder:{moved}"
    assert vitrail("resume", run).code == 0  # from there now


def test_other_data_are_refused_and_nothing_is_written(root):
    run, other = root / "run", make_photos(root / "other", count=11)
    before = (run / "config.json").read_bytes()
    outcome = vitrail("resume", run, "--data", f"folder:{other}")
    assert_refused(outcome, "has changed since", "12 images then, 11 now")
    assert (run / "config.json").read_bytes() == before


def test_the_same_command_again_goes_on(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["--steps", 4, *SETTINGS]
    assert pretrain(whole, *words).code == 0
    assert pretrain(run, *words, "--resume", "auto").code == 0  # there is none: it begins
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    outcome = pretrain(run, *words, "--resume", "auto", "--health-every", 7)
    assert outcome.code == 0, outcome
    assert steps(run) == [0, 1, 2, 3]
    assert weights(run) == weights(whole)
    assert "is finished" in pretrain(run, *words, "--resume", "auto").err
    assert_refused(pretrain(run, *words), "already holds a run")
    outcome = pretrain(run, *words, "--resume", "auto", "--optim.lr", 0.5)
    assert_refused(outcome, "a run of another command", "optim.lr: 0.001 -> 0.5")


def test_a_command_goes_on_with_its_run_though_it_was_made_longer(tmp_path):
    run, words = tmp_path / "run", SETTINGS
    assert pretrain(run, *words).code == 0
    assert vitrail("resume", run, "--epochs", 0.02).code == 0  # of 1297 digits at 8 a step
    assert len(steps(run)) == 3
    assert "is finished" in pretrain(run, *words, "--resume", "auto").err


def edit_state(run: Path, change) -> None:
    """Replaces the newest checkpoint by a whole one of another content."""
    folder = run / "checkpoints"
    newest = checkpoint.list_checkpoints(folder)[-1]
    file = newest / "state.pt"
    torch.save(change(torch.load(file, weights_only=True)), file)
    manifest = json.loads((newest / "manifest.json").read_text())
    facts = {"bytes": file.stat().st_size, "sha256": checkpoint._sha256(file)}
    (newest / "manifest.json").write_text(json.dumps(manifest | facts))


def first_key(state: dict) -> str:
    return next(k for k, v in state["objective"].items() if v.ndim == 2)


def other_shape(state: dict) -> dict:
    state["objective"][first_key(state)] = torch.zeros(3, 5)
    return state


def other_moments(state: dict) -> dict:
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    return state


WRONG = {
    "another shape": other_shape,
    "moments of another shape": other_moments,
    "a missing tensor": lambda state: {
        **state,
        "objective": {k: v for k, v in state["objective"].items() if k != first_key(state)},
    },
    "a missing entry": lambda state: {k: v for k, v in state.items() if k != "optimizer"},
    "a list": lambda state: [state],
    "a number": lambda state: 3,
    "fewer groups": lambda state: {
        **state,
        "optimizer": {**state["optimizer"], "param_groups": []},
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_of_another_shape_falls_back_to_the_checkpoint_before(tmp_path, name):
    run = tmp_path / "run"
    assert pretrain(run, "--steps", 3, *SETTINGS).code == 0
    before = weights(run)
    edit_state(run, WRONG[name])
    with pytest.warns(UserWarning, match="step-00000003 is not a state.*from step-00000002"):
        assert vitrail("resume", run).code == 0
    assert weights(run) == before


def test_weights_to_start_from_are_not_needed_once_a_checkpoint_holds_them(tmp_path):
    first, run = tmp_path / "first", tmp_path / "run"
    assert pretrain(first).code == 0
    assert pretrain(tmp_path / "other", "--seed", 1).code == 0
    words = ["--init-from", first, "--steps", 3, *SETTINGS]
    outcome = vitrail("pretrain", "simdino_digits", "--out", run, *TINY_HEAD, *words)
    assert outcome.code == 0, outcome
    before = weights(run)
    newest = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    shutil.copy(tmp_path / "other" / "encoder.safetensors", first / "encoder.safetensors")
    shutil.rmtree(newest)
    assert vitrail("resume", run).code == 0
    assert weights(run) == before
    (first / "encoder.json").write_text("no description any more")
    shutil.rmtree(newest)
    assert vitrail("resume", run).code == 0
    assert weights(run) == before
    shutil.rmtree(run / "checkpoints")
    assert_refused(vitrail("resume", run), "have changed since it began", str(first))
