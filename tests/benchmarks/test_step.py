"""The benchmark measures, and refuses to where the two sides are not the same."""

import json
import sys
from functools import partial

import pytest
import torch

from benchmarks import step
from benchmarks.step_setting import Setting, make_batch, view_list

pytest.importorskip("lightly")
from benchmarks.step_sides import METHODS, ParityError, build_ours, build_peer, require_parity

TINY = Setting("cpu", "fp32", "vit_nano_patch4_32", 4, 16, 8, 2, 64, drop_path=0.0)


def sides(method: str):
    ours = build_ours(method, TINY)
    return ours, build_peer(method, TINY, ours)


def both_steps(ours, peer):
    batch = make_batch(TINY)
    return partial(ours.step, batch), partial(peer.step, view_list(batch))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_perturbed_weight_is_refused(method, whose):
    ours, peer = sides(method)
    with torch.no_grad():
        peer.get_submodule(f"{whose}_backbone").blocks[1].mlp.fc2.weight.mul_(1.1)
    with pytest.raises(ParityError, match="not timed"):
        require_parity(*both_steps(ours, peer))


def test_the_second_step_sees_optimizer_and_teacher(monkeypatch):
    ours, peer = sides("dino")
    peer.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ParityError):
        require_parity(*both_steps(ours, peer))
    ours, peer = sides("dino")
    monkeypatch.setattr("benchmarks.step_peers.MOMENTUM", 0.5)
    with pytest.raises(ParityError):
        require_parity(*both_steps(ours, peer))


def test_a_loss_that_is_not_finite_is_refused():
    nan = partial(torch.tensor, float("nan"))
    with pytest.raises(ParityError):
        require_parity(nan, nan)


def test_both_sides_agree_are_timed_and_the_table_goes_where_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step, "RESULTS", tmp_path / "results")
    sizes = "--global-size 16 --local-size 8 --n-local 2 --batch 4 --prototypes 64"
    command = f"step --device cpu --backbone vit_nano_patch4_32 {sizes} --blocks 1 --steps 1 --save"
    monkeypatch.setattr(sys, "argv", command.split())
    step.main()
    saved = json.loads((tmp_path / "results" / "step_cpu.json").read_text())
    assert [row["method"] for row in saved["rows"]] == list(METHODS)
    for row in saved["rows"]:
        assert row["loss_gap"] < 1e-4
        assert row["ours_images_per_s"] > 0
        assert row["ratio"] == pytest.approx(row["ours_images_per_s"] / row["peer_images_per_s"])
    assert saved["provenance"]["torch"] == torch.__version__
    assert saved["provenance"]["commit"] in (tmp_path / "results" / "step_cpu.md").read_text()
    assert "ours, images/s" in capsys.readouterr().out


def test_without_lightly_it_says_so_and_leaves(monkeypatch, capsys):
    monkeypatch.setattr(step, "find_spec", lambda name: None if name == "lightly" else object())
    monkeypatch.setattr(sys, "argv", ["step", "--device", "cpu"])
    step.main()
    assert "lightly not installed" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["--backbone crate_tiny_patch16_224", "--compile", "--blocks 0"])
def test_what_cannot_run_is_refused_by_name(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["step", "--device", "cpu", *wrong.split()])
    with pytest.raises(SystemExit):
        step.main()
    assert wrong.split()[0] in capsys.readouterr().err.splitlines()[-1]
