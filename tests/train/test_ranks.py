"""torchrun with two processes gives the losses of one, and may take over from one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import finish, on_ranks
from tests.train import runs

REPOSITORY = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, "-m", "vitrail", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_config(run: Path, objective: str, /, **changes: object) -> None:
    from vitrail.train.run_folder import create

    create(run, runs.tiny_recipe(objective, **changes))


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_two_processes_give_the_losses_of_one(tmp_path, objective):
    one, two = tmp_path / "one", tmp_path / "two"
    assert finish(runs.pretrain, objective, str(one), {}) == 0
    write_config(two, objective)
    on_ranks(runs.resume, str(two))
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-6)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_two_ranks_go_on_with_a_run_of_one(tmp_path, objective):
    one, then = tmp_path / "one", tmp_path / "then"
    assert finish(runs.pretrain, objective, str(one), {}) == 0
    assert finish(runs.die_at, "fsync", 16, runs.pretrain, objective, str(then), {}) == -9
    done = len(losses(then))
    assert 3 <= done < runs.STEPS
    on_ranks(runs.resume, str(then))
    assert losses(then) == pytest.approx(losses(one), abs=1e-5)


def pseudo_labels(run: Path) -> torch.Tensor:
    return runs.final_state(run)["objective"]["pseudo_labels"]


def test_two_processes_cluster_as_one(tmp_path):
    """The features of all images are those of one process, to the bit; so are the clusters."""
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"objective": {"reassign": 1.0}}  # once, before the first step
    assert finish(runs.pretrain, "deepcluster", str(one), changes) == 0
    write_config(two, "deepcluster", **changes)
    on_ranks(runs.resume, str(two))
    assert torch.equal(pseudo_labels(two), pseudo_labels(one))
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


def test_two_ranks_go_on_within_an_epoch_of_one(tmp_path):
    one, then = tmp_path / "one", tmp_path / "then"
    assert finish(runs.pretrain, "deepcluster", str(one), {}) == 0
    shutil.copytree(one, then)
    shutil.rmtree(then / "checkpoints" / "step-00000012")
    on_ranks(runs.resume, str(then))
    assert torch.equal(pseudo_labels(then), pseudo_labels(one))
    assert losses(then) == pytest.approx(losses(one), abs=1e-5)


def test_pretrain_under_torchrun(tmp_path):
    out = tmp_path / "run"
    torchrun("pretrain", "simdino_digits", "--out", str(out), "--steps", "2", "--batch-size", "16")
    assert len(losses(out)) == 2
    assert (out / "encoder.safetensors").exists()
