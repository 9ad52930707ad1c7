"""Vital signs against formulas, and a warning for every way a run dies."""

import math

import numpy as np
import pytest
import torch

from vitrail.train.health import DivergedError, Monitor, effective_rank, require_finite, vital_signs


def test_effective_rank_by_formula():
    z = np.random.default_rng(0).normal(size=(50, 8))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    sigma = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    p = sigma / sigma.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert effective_rank(torch.tensor(z)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
def test_effective_rank_of_equal_rows_is_one(offset):
    row = torch.randn(1, 16) + offset
    assert effective_rank(row.expand(32, 16)) == 1.0
    assert effective_rank(torch.zeros(32, 16)) == 1.0


def test_effective_rank_counts_dimensions():
    signs = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(signs) == pytest.approx(8.0)


def test_spread_of_an_isotropic_cloud_is_one():
    signs = vital_signs(torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)))
    assert signs["spread_mean"] == pytest.approx(1.0, abs=0.02)
    assert vital_signs(torch.ones(32, 16))["spread_mean"] == pytest.approx(0.0, abs=1e-6)


def test_rows_that_are_not_finite_are_left_out():
    features = torch.randn(8, 4)
    features[0, 0] = float("nan")
    assert vital_signs(features) == vital_signs(features[1:])
    assert vital_signs(torch.full((8, 4), float("nan"))) == {}
    assert vital_signs(torch.randn(1, 4)) == {}


def readings(monitor: Monitor, features: torch.Tensor, loss: float, n: int) -> list[str]:
    return [
        reading["warning"]
        for step in range(n)
        if "warning" in (reading := monitor.measure(step, {"features": features}, loss, 1.0))
    ]


def test_a_loss_pinned_at_ln_k_is_named_only_when_it_stays():
    healthy = torch.randn(64, 16)
    warnings = readings(Monitor(1, chance_loss=math.log(65536)), healthy, 11.0904, 5)
    assert len(warnings) == 3
    assert "uniform output" in warnings[0]
    assert not readings(Monitor(1, chance_loss=math.log(65536)), healthy, 10.0, 5)
    assert not readings(Monitor(1, chance_loss=None), healthy, 11.0904, 5)


def test_collapsing_features_are_named():
    warnings = readings(Monitor(1, chance_loss=None), torch.ones(64, 16), 0.1, 5)
    assert "the features collapse" in warnings[0]
    assert not readings(Monitor(1, chance_loss=None), torch.randn(64, 16), 0.1, 5)


def test_only_rank_0_measures():
    out = {"features": torch.randn(64, 16)}
    assert "health" in Monitor(1, chance_loss=None).check(0, out, 0.1, 1.0)
    assert Monitor(1, chance_loss=None, is_main=False).check(0, out, 0.1, 1.0) == {}
    assert Monitor(1, chance_loss=None, next_step=5).check(4, out, 0.1, 1.0) == {}


def test_a_head_may_collapse_alone():
    monitor = Monitor(1, chance_loss=None)
    out = {"features": torch.randn(64, 16), "embedding": torch.ones(64, 16)}
    warnings = [monitor.measure(step, out, 0.1, 1.0).get("warning") for step in range(3)]
    assert warnings[:2] == [None, None]
    assert "the head outputs collapse: effective rank 1.00" in warnings[2]


def test_looking_costs_under_one_percent():
    monitor = Monitor(every=10, chance_loss=None)
    monitor.measure(0, {"features": torch.randn(512, 512)}, 1.0, step_seconds=1e-6)
    assert monitor.next_step > 10_000
    assert not monitor.due(10)
    monitor = Monitor(every=10, chance_loss=None)
    monitor.measure(0, {"features": torch.randn(8, 8)}, 1.0, step_seconds=100.0)
    assert monitor.next_step == 10


@pytest.mark.parametrize("broken", ["loss", "grad_norm"])
def test_a_number_that_is_not_finite_stops_with_step_reason_and_remedy(broken):
    good = {"step": 6, "loss": 1.0, "grad_norm": 2.0, "lr": 1e-3}
    bad = {**good, "step": 7, broken: float("nan")}
    require_finite([good], "fp32")
    with pytest.raises(DivergedError, match=r"step 7.* is not finite.*learning rate.*Try half"):
        require_finite([good, bad], "fp32")
    with pytest.raises(DivergedError, match="--precision fp32"):
        require_finite([bad], "bf16")
