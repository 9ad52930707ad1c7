import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.objectives.tiny import build, in_float64, make_batch
from tests.rounding import EXACT, float64_kept
from vitrail import api
from vitrail.data.views.plan import MultiCrop
from vitrail.objectives.cotraining import Config, CoTraining, entropy
from vitrail.train.health import PATIENCE, Monitor

TINY = Config(views=MultiCrop(16, n_local=0), n_labels=24, beta=1.5)


def apart(beta: float, scale: float = 1.0) -> CoTraining:
    """Two classifiers that are sure of different things."""
    objective = build(replace(TINY, beta=beta))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for network in (objective.phi, objective.psi):
            network.head.weight.normal_(0, scale, generator=generator)
            network.head.bias.normal_(0, scale, generator=generator)
    return objective


def cross_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return -(p * np.log(q)).sum(-1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@float64_kept()
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_loss_is_the_lectures(beta: float) -> None:
    objective = apart(beta).double()
    batch = in_float64(make_batch(objective.views(), 6))
    out = objective(batch, 0)
    x, y = batch.views[0].split(6)
    with torch.no_grad():
        pooled, phi = objective.phi([x])
        _, psi = objective.psi([y])
    p, q = (softmax(logits.numpy()) for logits in (phi, psi))
    labels = [m.mean(0) for m in (p, q)]
    diversity = sum(float(cross_entropy(m, m)) for m in labels)
    expected = (cross_entropy(p, q) + cross_entropy(q, p)).mean() - beta * diversity
    close = {"rel_tol": EXACT["rtol"], "abs_tol": EXACT["atol"]}
    assert math.isclose(out["loss"].item(), expected, **close)
    confidence = (cross_entropy(p, p) + cross_entropy(q, q)).mean() / 2
    assert math.isclose(out["entropy"].item(), confidence, **close)
    assert math.isclose(out["label_entropy"].item(), diversity / 2, **close)
    divergence = ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)).mean() / 2
    assert math.isclose(out["kl"].item(), divergence, **close)
    torch.testing.assert_close(out["features"], pooled, **EXACT)
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


@float64_kept()
def test_gradients_flow_into_both_arguments_of_each_cross_entropy() -> None:
    objective = apart(0.0).double()
    batch = in_float64(make_batch(objective.views(), 6))
    objective(batch, 0)["loss"].backward()
    found = [net.head.bias.grad for net in (objective.phi, objective.psi)]
    x, y = batch.views[0].split(6)
    with torch.no_grad():
        logits = [objective.phi([x])[1], objective.psi([y])[1]]
    leaves = [z.requires_grad_() for z in logits]
    p, q = (z.softmax(-1) for z in leaves)
    (-(p * q.log() + q * p.log()).sum(-1).mean()).backward()
    for grad, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(grad, leaf.grad.sum(0), **EXACT)


@float64_kept()
def test_agreement_at_the_uniform_distribution_is_a_stationary_point() -> None:
    objective = build(TINY).double()
    for network in (objective.phi, objective.psi):
        torch.nn.init.zeros_(network.head.weight)
    out = objective(in_float64(make_batch(objective.views(), 8)), 0)
    out["loss"].backward()
    uniform = 2 * (1 - TINY.beta) * math.log(TINY.n_labels)
    assert math.isclose(out["loss"].item(), uniform, rel_tol=EXACT["rtol"])
    assert all(p.grad.abs().max() < EXACT["atol"] for p in objective.parameters())


@pytest.mark.parametrize(("correlation", "falls"), [(1.0, True), (0.6, True), (0.4, False)])
def test_it_is_a_saddle_which_is_left_where_the_views_logits_correlate_above_one_half(
    correlation: float, falls: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(2, 4096, 24, generator=generator, dtype=torch.float64)
    x = 0.05 * common
    y = 0.05 * (correlation * common + math.sqrt(1 - correlation**2) * own)

    def loss(a: torch.Tensor, b: torch.Tensor) -> float:
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        agreement = -(p * log_q + q * log_p).sum(-1).mean()
        return float(agreement - entropy(p.mean(0)) - entropy(q.mean(0)))

    assert (loss(x, y) < loss(0 * x, 0 * y)) == falls


def test_a_sure_prediction_has_a_finite_loss_and_gradient() -> None:
    objective = apart(1.0, scale=1e4)
    out = objective(make_batch(objective.views(), 4), 0)
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_an_equal_start_is_one_and_another_is_not() -> None:
    together, apart_ = build(replace(TINY, equal_start=True)), build(TINY)
    pairs = zip(together.phi.parameters(), together.psi.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    assert not torch.equal(apart_.phi.head.weight, apart_.psi.head.weight)


def test_the_health_check_sees_the_collapse() -> None:
    objective = build(TINY)
    for network in (objective.phi, objective.psi):
        torch.nn.init.normal_(network.head.weight, std=1e-4)
    out = objective(make_batch(objective.views(), 8), 0)
    monitor = Monitor(every=1, chance_loss=objective.chance_loss)
    checks = [monitor.measure(i, out, out["loss"].item(), 1.0) for i in range(PATIENCE)]
    assert "head outputs collapse" in checks[-1]["warning"]


def test_one_sample_and_accumulation_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1, but CoTraining needs at least 2"):
        api.pretrain("cotraining_digits", tmp_path / "one", batch_size=1)
    with pytest.raises(ValueError, match=r"accumulate is 2, but CoTraining's loss"):
        api.pretrain("cotraining_digits", tmp_path / "slices", accumulate=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": MultiCrop(n_local=2)}, "n_local is 2"),
        ({"n_labels": 1}, "n_labels is 1"),
        ({"beta": -1.0}, "beta is -1"),
    ],
)
def test_config_names_the_field_and_value_it_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)
