"""Tests of the loop on tiny real runs."""

import json
from pathlib import Path

import pytest
import torch

from tests.train import runs


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(kind: str, out: Path, **changes) -> list[dict]:
    runs.pretrain(kind, str(out), changes)
    return rows(out)


def test_metrics_hold_one_object_a_step(tmp_path):
    found = trained("dino", tmp_path / "run")
    assert [row["step"] for row in found] == list(range(runs.STEPS))
    for row in found:
        assert row["images_per_s"] > 0
        assert 0 <= row["data_wait"] < 1
        assert {"loss", "lr", "weight_decay", "grad_norm", "teacher_entropy", "epoch"} <= row.keys()
    assert found[0]["health"]["effective_rank"] > 1
    assert (tmp_path / "run" / "tb").exists()


def test_accumulation_changes_nothing_for_dino(tmp_path):
    whole = trained("dino", tmp_path / "whole")
    halves = trained("dino", tmp_path / "halves", accumulate=2)
    for a, b in zip(whole, halves, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    a, b = (
        runs.final_state(tmp_path / name)["objective"]["center"] for name in ("whole", "halves")
    )
    assert torch.allclose(a, b, atol=1e-6)
    assert a.abs().max() > 0


def test_accumulation_is_refused_where_it_would_change_the_loss(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate is 2.*SimDINO"):
        trained("simdino", tmp_path / "run", accumulate=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["simdino", "dino"])
def test_bf16_stays_close_to_fp32(tmp_path, objective):
    full = trained(objective, tmp_path / "fp32", steps=3)
    half = trained(objective, tmp_path / "bf16", steps=3, precision="bf16")
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], abs=0.05)
    assert half[0]["loss"] != full[0]["loss"]


def test_a_collapsing_run_says_so_while_it_happens(tmp_path, capfd):
    # Without the coding rate, nothing keeps features apart.
    objective = {"gamma": 0.0, "momentum_teacher": 0.5}
    steps = {"steps": 60, "checkpoint_every": 1000, "health_every": 5}
    rates = {"lr": 0.01, "lr_per_256": False, "warmup_epochs": 0.0}
    found = trained("simdino", tmp_path / "run", **steps, objective=objective, optim=rates)
    warnings = [row["warning"] for row in found if "warning" in row]
    assert warnings
    assert "collapse" in warnings[0]
    assert "warning: step" in capfd.readouterr().err


def test_the_untrained_baseline_is_the_run_s_first_encoder(tmp_path):
    from vitrail.distributed.ranks import join
    from vitrail.encoder import Encoder

    trained("dino", tmp_path / "run", steps=2)
    parts = runs.assemble_on("dino", join("cpu"))
    untrained = Encoder.load(tmp_path / "run").untrained()
    runs.assert_equal_bits(
        dict(untrained.backbone.state_dict()), dict(parts.objective.encoder.state_dict())
    )


def test_lion_trains(tmp_path):
    found = trained("dino", tmp_path / "run", steps=3, optim={"name": "lion", "lr": 1e-3})
    assert found[-1]["loss"] != found[0]["loss"]
