"""Run folders and weights from strangers: nothing in them is executed, believed or overwritten."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hostile.judge import judge

RUN = Path(__file__).parents[1] / "train" / "runs_c718dfc" / "simdino"
DEEP = "[" * 100_000
TEXTS = {
    "nothing": "",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "half": '{"seed": 0, "obj',
    "deep": DEEP,
    "digits": '{"seed": ' + "9" * 5000 + "}",
    "an infinity": '{"seed": 1e999, "steps": NaN}',
    "no unicode": "\udcff\udcfe",
    "an escape sequence": '{"\\u001b]0;title\\u0007": 1}',
    "a zero byte": "\0\0\0",
    "a key of its own": '{"__class__": "os.system", "args": ["true"]}',
}
COMMANDS = {
    "resume": ["resume", "RUN"],
    "report": ["report", "RUN"],
    "evaluate": ["evaluate", "RUN", "--protocols", "rank", "--workers", "0"],
    "embed": ["embed", "RUN", "--out", "RUN/x.npz", "--workers", "0"],
    "export": ["export", "RUN", "--format", "safetensors"],
}
READ_BY = {
    "config.json": ["resume", "report", "evaluate", "embed"],
    "encoder.json": ["evaluate", "embed", "export", "report"],
    "metrics.jsonl": ["resume", "report"],
    "evaluation.json": ["report", "evaluate"],
    "quarantine.jsonl": ["resume", "embed"],
}


@pytest.fixture
def run(tmp_path) -> Path:
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def call(command: str, run: Path) -> int:
    return judge(*(word.replace("RUN", str(run)) for word in COMMANDS[command])).code


QUICK = ("half", "deep", "no unicode")  # texts that a run is trained to its end with


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs over every text, file and command; without --slow, `resume` meets the quick ones."""
    if "text" not in metafunc.fixturenames:
        return
    cases = [(file, c, text) for file in READ_BY for c in READ_BY[file] for text in TEXTS]
    if not metafunc.config.getoption("--slow"):
        cases = [
            (file, command, text)
            for file, command, text in cases
            if command != "resume" or file == "config.json" or text in QUICK
        ]
    metafunc.parametrize(("file", "command", "text"), cases)


def test_a_text_of_a_run(file, command, text, run):
    (run / file).write_bytes(TEXTS[text].encode("utf-8", "surrogateescape"))
    call(command, run)


def changed(run: Path, **tensors: torch.Tensor) -> bytes:
    state = load_file(run / "encoder.safetensors") | tensors
    save_file(state, run / "changed")
    return (run / "changed").read_bytes()


class Command:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def weights(run: Path, marker: Path) -> dict[str, bytes]:
    whole = (run / "encoder.safetensors").read_bytes()
    [name, tensor] = next(iter(load_file(run / "encoder.safetensors").items()))
    pickled, zipped = pickle.dumps(Command(marker)), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    state = io.BytesIO()
    torch.save({"model": {"x": torch.zeros(3)}, "epoch": 1}, state)
    return {
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "a long header": struct.pack("<Q", 2**63 - 1) + whole[8:],
        "a header of zeros": struct.pack("<Q", 64) + bytes(64),
        "a deep header": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
        "offsets beyond": json_header(
            {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}
        ),
        "a negative shape": json_header(
            {"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}
        ),
        "a huge shape": json_header(
            {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}
        ),
        "no tensors": json_header({}),
        "not a number": changed(run, **{name: torch.full_like(tensor, float("nan"))}),
        "infinite": changed(run, **{name: torch.full_like(tensor, float("inf"))}),
        "another shape": changed(run, **{name: torch.zeros(3)}),
        "integers": changed(run, **{name: torch.zeros_like(tensor, dtype=torch.int64)}),
        "a name more": changed(run, extra=torch.zeros(3)),
        "pickled": pickled,
        "zipped and pickled": zipped.getvalue(),
        "of torch": state.getvalue(),
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    }


WEIGHTS = [
    "nothing",
    "half",
    "a long header",
    "a header of zeros",
    "a deep header",
    "offsets beyond",
    "a negative shape",
    "a huge shape",
    "no tensors",
    "not a number",
    "infinite",
    "another shape",
    "integers",
    "a name more",
    "pickled",
    "zipped and pickled",
    "of torch",
    "text",
]


def json_header(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize("command", ["evaluate", "embed", "export"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_a_run(command, name, run, tmp_path):
    marker = tmp_path / "marker"
    (run / "encoder.safetensors").write_bytes(weights(run, marker)[name])
    outcome = judge(*(w.replace("RUN", str(run)) for w in COMMANDS[command]), marker=marker)
    assert outcome.code == 1, outcome


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".npz", ".ckpt"])
@pytest.mark.parametrize(
    "name", ["nothing", "half", "pickled", "zipped and pickled", "text", "a huge shape"]
)
def test_weights_of_strangers(suffix, name, run, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / f"weights{suffix}"
    path.write_bytes(weights(run, marker)[name])
    outcome = judge("embed", path, "--data", "digits", "--out", tmp_path / "x.npz", marker=marker)
    assert outcome.code == 1, outcome
    assert not (tmp_path / "x.npz").exists()


def test_a_checkpoint_that_is_a_pickle(run, tmp_path):
    marker = tmp_path / "marker"
    for state in run.glob("checkpoints/*/*.pt"):
        state.write_bytes(pickle.dumps(Command(marker)))
    outcome = judge("resume", run, marker=marker)
    assert outcome.code == 1, outcome


@pytest.mark.parametrize("link", ["config.json", "metrics.jsonl", "encoder.json", "report.html"])
def test_a_link_out_of_a_run_is_not_written_through(link, run, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("stays")
    (run / link).unlink(missing_ok=True)
    (run / link).symlink_to(outside)
    for command in ("report", "resume"):
        call(command, run)
    assert outside.read_text() == "stays"
