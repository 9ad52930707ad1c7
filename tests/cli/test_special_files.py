"""Files of a run that are none, or not what they should be: one sentence, or they do without."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.shell import assert_refused, pretrain, read_lines, vitrail

pytestmark = pytest.mark.timeout(60)  # a pipe is waited for without end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(run, "--checkpoint-every", 1).code == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


SPECIAL = {"pipe": make_pipe, "device": make_device, "folder": make_folder}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_config_that_is_no_file(run, kind):
    SPECIAL[kind](run / "config.json")
    assert_refused(vitrail("resume", run), "config.json is not a file", "put a file there")


@pytest.mark.parametrize("kind", SPECIAL)
def test_metrics_that_are_no_file(run, kind):
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    SPECIAL[kind](run / "metrics.jsonl")
    outcome = vitrail("resume", run)
    assert outcome.code == 1
    assert "metrics.jsonl is not a file" in outcome.err
    assert vitrail("report", run).code == 0
    assert "metrics.jsonl cannot be read" in (run / "report.html").read_text()


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_manifest_that_is_no_file(run, kind):
    SPECIAL[kind](run / "checkpoints" / "step-00000002" / "manifest.json")
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert vitrail("resume", run).code == 0


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_weights_that_are_no_file(run, tmp_path, kind, command):
    SPECIAL[kind](run / "encoder.safetensors")
    more = ["--format", "safetensors"] if command == "export" else []
    assert_refused(vitrail(command, run, *more), "encoder.safetensors")
    place = tmp_path / "weights.safetensors"
    SPECIAL[kind](place)
    assert_refused(vitrail(command, place, *more), str(place))


def test_lines_of_metrics_that_are_not_text(run):
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'\xff\xfe{"step": 1}\n' + b"[" * 100_000 + b"\n{}\n")
    assert vitrail("report", run).code == 0
    assert vitrail("resume", run).code == 0
    assert [row["step"] for row in read_lines(path)] == [0, 1]


def test_a_config_with_bytes_that_are_not_text(run):
    (run / "config.json").write_bytes(b"\xff\xfe" + (run / "config.json").read_bytes())
    assert_refused(vitrail("resume", run), "is not JSON")
    (run / "config.json").write_text("[" * 100_000)
    assert_refused(vitrail("resume", run), "is not JSON")


def test_changes_that_are_none_are_ignored(run):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"changes": [3, {}], "notes": 3}))
    assert vitrail("resume", run).code == 0
    assert vitrail("report", run).code == 0
