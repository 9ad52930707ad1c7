"""An objective of another package, installed by pip, is used like one of ours."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

PACKAGE = Path(__file__).parent / "package"
REPOSITORY = Path(__file__).resolve().parents[2]
_SHORT = """--steps 12 --batch-size 16 --checkpoint-every 3 --device cpu --workers 0
    --objective.drop-path 0.1 --objective.views.size 8 --optim.warmup-epochs 0"""
SHORT = _SHORT.split()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*command, "--no-build-isolation", "--target", str(site), str(_source(tmp_path_factory))],
        check=True,
        timeout=300,
    )
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(site)]),
        "OMP_NUM_THREADS": "1",
    }


def _source(factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the package: building writes beside the sources."""
    copy = factory.mktemp("source") / "package"
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".toml"):
            target = copy / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
    return copy


def vitrail(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-m", "vitrail", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pretrain_and_kill(environment: dict[str, str], run: Path) -> None:
    """Kills a run after its first checkpoint."""
    command = [sys.executable, "-m", "vitrail", "pretrain", "rotation_digits", "--out", str(run)]
    with subprocess.Popen(
        [*command, *SHORT], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not list(run.glob("checkpoints/step-*")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


def test_train_kill_resume_evaluate_and_report(environment, tmp_path):
    assert "which quarter turn was made" in vitrail(environment, "list", "objectives")
    listed = vitrail(environment, "list", "recipes")
    assert "Rotation prediction, ViT of width 64" in " ".join(listed.split())
    help_ = vitrail(environment, "pretrain", "rotation_digits", "--help")
    assert "rate of stochastic depth in the last layer" in " ".join(help_.replace("│", " ").split())

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    vitrail(environment, "pretrain", "rotation_digits", "--out", whole, *SHORT)
    config = json.loads((whole / "config.json").read_text())
    assert config["objective"]["kind"] == "rotation"
    assert config["objective"]["drop_path"] == 0.1
    pretrain_and_kill(environment, killed)
    vitrail(environment, "resume", killed)
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (whole, killed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)

    vitrail(environment, "evaluate", whole, "--protocols", "knn", "--workers", 0)
    assert 0 < json.loads((whole / "evaluation.json").read_text())["knn"]["trained"] <= 1
    vitrail(environment, "report", whole)
    assert "rotation" in (whole / "report.html").read_text(encoding="utf-8")


def test_without_the_package_its_runs_say_what_is_missing(environment, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    objective = {"kind": "rotation", "drop_path": 0.1}
    (run / "config.json").write_text(
        json.dumps({"name": "rotation_digits", "objective": objective})
    )
    command = [sys.executable, "-m", "vitrail", "resume", str(run)]
    without = environment | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=without, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "objective.kind is 'rotation'" in done.stderr
