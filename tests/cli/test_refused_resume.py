"""A run that cannot be gone on with says why, and is left as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import shell
from tests.cli.shell import assert_refused, make_photos, pretrain, vitrail

HOLD = """
import fcntl, os, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.truncate(0); lock.write(str(os.getpid())); lock.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with two checkpoints, after 2 and 3 steps."""
    run = tmp_path / "run"
    assert pretrain(run, "--steps", 3, "--checkpoint-every", 1).code == 0
    return run


def edit(run: Path, **changes: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_in_use(run):
    command = [sys.executable, "-c", HOLD, str(run / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert_refused(vitrail("resume", run), "in use by process", str(holder.pid), "wait")
        holder.stdin.close()
    assert vitrail("resume", run).code == 0


def test_an_edited_recipe(run):
    before = shell.snapshot(run)
    optim = json.loads((run / "config.json").read_text())["optim"]
    edit(run, batch_size=16, optim=optim | {"lr": 0.5})
    assert_refused(
        vitrail("resume", run), "batch_size: 8 -> 16", "optim.lr: 0.001 -> 0.5", "another --out"
    )
    assert shell.snapshot(run) | {"config.json": b""} == before | {"config.json": b""}


def test_fields_of_speed_may_be_edited(run):
    assert len(list((run / "checkpoints").iterdir())) == 2
    newest = sorted((run / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").write_text("{}")
    edit(run, workers=1, checkpoint_every=2, health_every=7, device="auto", max_bad_fraction=0.1)
    with pytest.warns(UserWarning, match="step-00000003 is damaged.*going on from step-00000002"):
        assert vitrail("resume", run).code == 0
    assert json.loads((newest / "manifest.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["is not JSON", "restore"]),
        ("[]", ["not a JSON object", "restore"]),
        ("", ["is not JSON"]),
        ("\x00\xff", ["is not JSON"]),
        ("{}", ["lacks objective, backbone"]),
    ],
)
def test_a_config_that_is_none(run, text, words):
    (run / "config.json").write_bytes(text.encode("latin-1"))
    assert_refused(vitrail("resume", run), str(run / "config.json"), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_sise": 4}, ["batch_sise is not a field", "'batch_size'"]),
        ({"batch_size": "many"}, ["batch_size is 'many'", "int"]),
        ({"batch_size": True}, ["batch_size is True", "int"]),
        ({"epochs": None}, ["epochs is None", "float"]),
        ({"precision": "fp61"}, ["precision is 'fp61'", "'fp32'"]),
        ({"objective": {"kind": "simdin"}}, ["objective.kind is 'simdin'", "'simdino'"]),
        ({"objective": {"kind": ["simdino"]}}, ["objective.kind is ['simdino']"]),
        ({"objective": None}, ["objective.kind is None"]),
        ({"optim": {"lr": "x"}}, ["optim.lr is 'x'", "float"]),
        ({"optim": []}, ["optim is []"]),
        ({"optim": {"betas": [0.9]}}, ["optim.betas is [0.9]"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"backbone": "vit_nano"}, ["'vit_nano'", "did you mean"]),
    ],
)
def test_a_field_that_does_not_fit(run, changes, words):
    edit(run, **changes)
    assert_refused(vitrail("resume", run), *words)


def test_all_checkpoints_damaged(run):
    for path in (run / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(b"not what was written")
    before = shell.snapshot(run)
    assert_refused(
        vitrail("resume", run), "no whole checkpoint", "step-00000002", "step-00000003", "backup"
    )
    assert shell.snapshot(run) == before


def test_the_newest_checkpoint_damaged(run):
    metrics = [row["loss"] for row in shell.read_lines(run / "metrics.jsonl")]
    weights = (run / "encoder.safetensors").read_bytes()
    (run / "checkpoints" / "step-00000003" / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-00000003 is damaged.*going on from step-00000002"):
        assert vitrail("resume", run).code == 0
    assert [row["loss"] for row in shell.read_lines(run / "metrics.jsonl")] == metrics
    assert (run / "encoder.safetensors").read_bytes() == weights


def test_data_that_changed(tmp_path):
    photos, run = make_photos(tmp_path / "photos"), tmp_path / "run"
    assert pretrain(run, "--data", f"folder:{photos}").code == 0
    (photos / "03.png").unlink()
    words = ["has changed since", "12 images then, 11 now", str(photos), "another --out"]
    assert_refused(vitrail("resume", run), *words)


def test_a_run_that_was_never_saved_has_no_encoder(tmp_path):
    run = tmp_path / "run"
    assert pretrain(run).code == 0
    (run / "encoder.safetensors").unlink()
    assert_refused(vitrail("evaluate", run), "has no encoder.safetensors", f"vitrail resume {run}")
    assert vitrail("resume", run).code == 0  # finished, and exported again
    assert (run / "encoder.safetensors").exists()
