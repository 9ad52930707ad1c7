"""A checkpoint holds all state or none."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from vitrail import atomic
from vitrail.train import checkpoint

CPU = torch.device("cpu")

EVIL = """
import os, sys, torch
class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)
torch.save(Evil(), sys.argv[2])
"""


def state(step: int) -> dict:
    return {"step": step, "weights": {"w": torch.full((100,), float(step))}}


def test_saves_and_loads_the_newest(tmp_path):
    for step in (1, 2, 3):
        checkpoint.write_state(tmp_path, step, state(step))
    loaded = checkpoint.load_latest(tmp_path, CPU)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"]["w"], state(3)["weights"]["w"])
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        "step-00000002",
        "step-00000003",
    ]


def test_nothing_saved_yet(tmp_path):
    assert checkpoint.load_latest(tmp_path, CPU) is None
    assert checkpoint.load_latest(tmp_path / "no such folder", CPU) is None


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    for step in (1, 2):
        checkpoint.write_state(tmp_path, step, state(step))
    newest = tmp_path / "step-00000002"
    data = bytearray((newest / "state.pt").read_bytes())
    if damage == "truncate":
        (newest / "state.pt").write_bytes(data[: len(data) // 2])
    elif damage == "flip a bit":
        data[len(data) // 2] ^= 1
        (newest / "state.pt").write_bytes(data)
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert checkpoint.load_latest(tmp_path, CPU)["step"] == 1
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.load_latest(tmp_path, CPU)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    checkpoint.write_state(tmp_path, 1, state(1))
    (tmp_path / "step-00000001" / "state.pt").write_bytes(b"")
    checkpoint.write_state(tmp_path, 1, state(1))
    assert checkpoint.load_latest(tmp_path, CPU)["step"] == 1


@pytest.mark.parametrize("at", ["open", "fsync", "rename"])
def test_a_failure_inside_a_write_leaves_the_one_before(tmp_path, monkeypatch, at):
    checkpoint.write_state(tmp_path, 1, state(1))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {"open": (torch, "save"), "fsync": (os, "fsync"), "rename": (json, "dump")}[at]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(OSError, match="could not be written"):
            checkpoint.write_state(tmp_path, 2, state(2))
    assert checkpoint.load_latest(tmp_path, CPU)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    checkpoint.write_state(tmp_path, 1, state(1))
    leftover = tmp_path / ".writing-00000002"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path, CPU)["step"] == 1
    checkpoint.write_state(tmp_path, 3, state(3))
    assert not leftover.exists()


def test_a_checkpoint_that_holds_code_is_refused(tmp_path):
    checkpoint.write_state(tmp_path, 1, {"step": 1})
    evil = tmp_path / "step-00000001" / "state.pt"
    subprocess.run([sys.executable, "-c", EVIL, str(tmp_path / "owned"), str(evil)], check=True)
    manifest = {"step": 1, "bytes": evil.stat().st_size, "sha256": checkpoint._sha256(evil)}
    (evil.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="step-00000001"):
        checkpoint.load_latest(tmp_path, CPU)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_without_a_format_number_is_of_format_1(tmp_path):
    manifest_file = checkpoint.write_state(tmp_path, 1, state(1)) / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    assert manifest.pop("format") == checkpoint.STATE_FORMAT
    manifest_file.write_text(json.dumps(manifest))
    assert checkpoint.load_latest(tmp_path, CPU)["step"] == 1


def test_a_newer_format_is_refused_even_if_an_older_checkpoint_is_there(tmp_path):
    checkpoint.write_state(tmp_path, 1, state(1))
    manifest_file = checkpoint.write_state(tmp_path, 2, state(2)) / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) | {"format": checkpoint.STATE_FORMAT + 1}
    manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.NewerFormatError, match=r"00002 has format 2.*go on with"):
        checkpoint.load_latest(tmp_path, CPU)


def test_write_atomically_replaces_or_keeps(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    atomic.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        atomic.write_atomically(path, "new")
    assert path.read_text() == "old"
