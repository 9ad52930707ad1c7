"""Option values that nobody can mean: each is refused before anything is allocated or written."""

import pytest

from tests.cli.shell import TINY
from tests.hostile.judge import judge

HUGE = "99999999999"
VALUES = {
    "--steps": ["0", "-1", "1.5", "nan", "9" * 400],
    "--epochs": ["-1", "nan", "inf"],
    "--batch-size": ["0", "-8", "nan", HUGE, "1e9"],
    "--accumulate": ["0", "-1", HUGE],
    "--workers": ["-1", "100000", "many"],
    "--seed": ["-1", "1.5", str(2**70)],
    "--img-size": ["0", "-16", HUGE],
    "--patch-size": ["0", "-4", HUGE],
    "--channels": ["0", "-1", HUGE],
    "--precision": ["fp8", ""],
    "--device": ["gpu", "cuda:99", ""],
    "--data": [
        "",
        ":",
        "digit",
        "folder:",
        "folder:/no/such/place",
        "digits:[0]",
        "wds:{0..9e9}.tar",
    ],
    "--backbone": ["", "vit", "../../etc/passwd", "vit_nano_patch4_32\n"],
    "--backbone-options": [
        "depth=0",
        "depth=-1",
        f"depth={HUGE}",
        "width=0",
        f"width={HUGE}",
        "=1",
        "x",
    ],
    "--checkpoint-every": ["-1", "nan"],
    "--health-every": ["-1", "nan"],
    "--optim.lr": ["-1", "nan", "inf"],
    "--optim.weight-decay": ["-1", "nan", "inf"],
    "--optim.betas": ["1 1", "-1 0", "nan nan"],
    "--optim.clip": ["-1", "nan"],
    "--optim.warmup-epochs": ["-1", "nan"],
    "--optim.name": ["adam", ""],
    "--objective.eps": ["0", "-1", "nan"],
    "--objective.gamma": ["-1", "nan"],
    "--objective.hidden-dim": ["0", "-1", HUGE],
    "--objective.bottleneck-dim": ["0", "-1", HUGE],
    "--objective.drop-path": ["1", "-0.1", "nan"],
    "--objective.momentum-teacher": ["2", "-1", "nan"],
    "--objective.views.global-size": ["0", "-8", HUGE],
    "--objective.views.n-local": ["-1", HUGE],
    "--objective.views.mean": ["nan", "0 0 0 0"],
    "--objective.views.std": ["0", "-1", "nan"],
    "--init-from": ["", "/dev/zero", "/no/such/place"],
    "--no-such-option": ["1"],
}
CASES = [(option, value) for option, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("option", "value"), CASES, ids=[f"{o} {v[:20]!r}" for o, v in CASES])
def test_a_value_is_refused(option, value, tmp_path):
    out = tmp_path / "run"
    outcome = judge("pretrain", "simdino_digits", "--out", out, *TINY, option, *value.split(" "))
    assert outcome.code in (1, 2), outcome
    assert not (out / "metrics.jsonl").exists()


PLACES = ["", "/dev/null", "/dev/full/run", "/proc/run", "a\0b", "x" * 300]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: repr(place[:12]))
def test_a_place_for_a_run_that_is_none(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody's file").write_text("stays")
    outcome = judge("pretrain", "simdino_digits", "--out", place, *TINY)
    assert outcome.code in (1, 2), outcome
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's file"]


COMMANDS = [
    ["nonsense"],
    ["pretrain", "nonsense"],
    ["pretrain", "simdino_digits"],
    ["resume"],
    ["resume", "/no/such/run"],
    ["resume", ""],
    ["evaluate", "/dev/zero"],
    ["evaluate", "/no/such/run"],
    ["evaluate", "."],
    ["report", "/dev/null"],
    ["report", ""],
    ["embed", "/no/such/run", "--out", "x.npz"],
    ["embed", "/dev/zero", "--out", "x.npz", "--data", "digits"],
    ["export", "/dev/zero", "--format", "timm"],
    ["export", ".", "--format", "nonsense"],
    ["stats", "nonsense"],
    ["stats", "digits", "--max", "-1"],
    ["stats", "digits", "--workers", "-1"],
    ["stats", "digits", "--channels", "0"],
    ["pack", "digits", "--out", ""],
    ["pack", "digits", "--out", "/dev/null"],
    ["saliency", "/dev/zero", "--frames", ".", "--out", "x.gif"],
    ["list", "nonsense"],
    ["list", "\x1b]0;title\x07"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = judge(*arguments)
    assert outcome.code in (1, 2), outcome
    assert list(tmp_path.iterdir()) == []
