"""torchrun with two processes gives the losses of one, and may take over from one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

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


def write_config(run: Path, objective: str) -> None:
    from vitrail.run import create

    create(run, runs.tiny_recipe(objective))


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_two_processes_give_the_losses_of_one(tmp_path, objective):
    one, two = tmp_path / "one", tmp_path / "two"
    assert runs.finish(runs.pretrain, objective, str(one), {}) == 0
    write_config(two, objective)
    torchrun("resume", str(two))
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-6)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_two_ranks_go_on_with_a_run_of_one(tmp_path, objective):
    one, then = tmp_path / "one", tmp_path / "then"
    assert runs.finish(runs.pretrain, objective, str(one), {}) == 0
    assert runs.finish(runs.die_at, "fsync", 12, runs.pretrain, objective, str(then), {}) == -9
    done = len(losses(then))
    assert 3 <= done < runs.STEPS
    torchrun("resume", str(then))
    assert losses(then) == pytest.approx(losses(one), abs=1e-5)


def test_pretrain_under_torchrun(tmp_path):
    out = tmp_path / "run"
    torchrun("pretrain", "simdino_digits", "--out", str(out), "--steps", "2", "--batch-size", "16")
    assert len(losses(out)) == 2
    assert (out / "encoder.safetensors").exists()
