import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.models.modules.heads import SwaVPrototypes
from torch.nn.functional import normalize

from tests.objectives.tiny import CROPS, HORIZON, build, in_float64, make_batch
from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail import api
from vitrail.nn.sinkhorn import sinkhorn
from vitrail.objectives.contract import Objective
from vitrail.objectives.swav import VIEWS, Config, swapped_prediction
from vitrail.train import checkpoint

TINY = Config(views=CROPS, n_prototypes=24, hidden_dim=32, feature_dim=16)
# Without its queue in the first step, and with it, in uneven shares, in the second.
VARIANTS = {"queue": replace(TINY, queue_length=5, queue_epoch=0)}

TAU = 0.1
QUEUED = replace(TINY, queue_length=16, queue_epoch=0.5)  # from step 2 on


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def scores_of(views: int, rows: int = 6, seed: int = 0) -> torch.Tensor:
    """Cosines with 20 prototypes: [views, rows, 20]."""
    return unit(views, rows, 8, seed=seed) @ unit(20, 8, seed=100).T


def published_codes(scores: np.ndarray) -> np.ndarray:
    """The paper's listing, with its ε of 0.05 and three iterations."""
    q = np.exp(scores / 0.05).T
    q /= q.sum()
    for _ in range(3):
        q *= 1 / q.shape[0] / q.sum(1, keepdims=True)
        q *= 1 / q.shape[1] / q.sum(0, keepdims=True)
    return (q / q.sum(0, keepdims=True)).T


def oracle(scores: torch.Tensor, queue: torch.Tensor | None = None) -> float:
    """Every code against every other view; the queue's rows [2, Q, K] come first, as published."""
    s = scores.double().numpy()
    terms = []
    for i in range(2):
        rows = s[i] if queue is None else np.concatenate([queue[i].double().numpy(), s[i]])
        q = published_codes(rows)[-s.shape[1] :]
        for j in (j for j in range(len(s)) if j != i):
            log_p = s[j] / TAU - np.log(np.exp(s[j] / TAU).sum(-1, keepdims=True))
            terms.append(-(q * log_p).sum(-1).mean())
    assert len(terms) == 2 * (len(s) - 1)
    return float(np.mean(terms))


def scores_by_view(objective: Objective, batch) -> torch.Tensor:
    with torch.no_grad():
        pooled = torch.cat(
            [f.pooled for f in objective.network.backbone.forward_packed(batch.views)]
        )
        z = normalize(objective.network.head(pooled), dim=-1)
        return (z @ objective.prototypes.weight.T).unflatten(0, (-1, batch.size))


def train(objective: Objective, steps: range, lr: float = 0.1) -> list[torch.Tensor]:
    """SGD steps at batch 8; the features of each step's global views, [2, 8, P]."""
    features = []
    for step in steps:
        batch = make_batch(objective.views(), 8, step)
        if objective.queue.dtype == torch.float64:
            batch = in_float64(batch)
        out = objective(batch, step)
        out["loss"].backward()
        with torch.no_grad():
            for p in objective.parameters():
                p.sub_(lr * p.grad)
                p.grad = None
        objective.after_step({k: v.detach() for k, v in out.items()}, step)
        features.append(out["embedding"].unflatten(0, (2, 8)))
    return features


@float64_kept()
@pytest.mark.parametrize("views", [2, 3, 8])
def test_loss_is_the_formula(views: int) -> None:
    scores = scores_of(views)
    codes = torch.stack([sinkhorn(s, 0.05) for s in scores[:2]])
    loss = swapped_prediction(scores, codes, TAU)
    assert math.isclose(loss.item(), oracle(scores), rel_tol=EXACT["rtol"])


@float64_kept()
@pytest.mark.parametrize("length", [0, 10])
@pytest.mark.parametrize("views", [2, 8])
def test_loss_and_gradient_are_lightlys(views: int, length: int) -> None:
    queue = scores_of(2, rows=length, seed=1)
    ours, theirs = (scores_of(views).requires_grad_() for _ in range(2))
    rows = torch.cat([ours[:2].detach(), queue], 1)
    codes = torch.stack([sinkhorn(r, 0.05)[:6] for r in rows])
    loss = swapped_prediction(ours, codes, TAU)
    expected = SwaVLoss()(list(theirs[:2]), list(theirs[2:]), list(queue) if length else None)
    torch.testing.assert_close(loss, expected.squeeze(), **EXACT)
    assert math.isclose(loss.item(), oracle(ours.detach(), queue), rel_tol=EXACT["rtol"])
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


@float64_kept()
def test_prototypes_are_lightlys_without_their_bias() -> None:
    objective = build(TINY).double()
    peer = SwaVPrototypes(16, 24).double()
    with torch.no_grad():
        peer.heads[0].bias.zero_()
        objective.prototypes.weight.copy_(peer.heads[0].weight)
    peer.normalize()
    objective.after_step({}, 0)
    z = unit(5, 16)
    torch.testing.assert_close(objective.prototypes(z), peer(z), **EXACT)


@float64_kept()
def test_forward_is_the_loss_of_the_network() -> None:
    objective = build(TINY).double()
    batch = in_float64(make_batch(objective.views(), 8))
    out = objective(batch, 0)
    scores = scores_by_view(objective, batch)
    assert math.isclose(out["loss"].item(), oracle(scores), rel_tol=EXACT["rtol"])
    codes = np.stack([published_codes(s.double().numpy()) for s in scores[:2]])
    entropy = -(codes * np.log(codes)).sum(-1).mean()
    assert math.isclose(out["code_entropy"].item(), entropy, rel_tol=EXACT["rtol"])
    expected = oracle(scores) - entropy
    assert math.isclose(out["kl"].item(), expected, rel_tol=0, abs_tol=EXACT["atol"])
    assert out["features"].shape == (16, 32)
    assert out["embedding"].shape == (16, 16)
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


@float64_kept()
def test_queue_holds_the_newest_features_and_counts_once_it_is_full() -> None:
    objective = build(QUEUED).double()
    seen = train(objective, range(2))
    assert objective.queue.abs().max() == 0
    for step in range(2, 7):
        batch = in_float64(make_batch(objective.views(), 8, step))
        scores = scores_by_view(objective, batch)
        full = step >= 2 + 16 // 8
        if full:
            newest = torch.cat([seen[-1], seen[-2]], 1)
            assert torch.equal(objective.queue, newest)
        expected = oracle(scores, newest @ objective.prototypes.weight.T.detach() if full else None)
        loss = objective(batch, step)["loss"].item()
        assert math.isclose(loss, expected, rel_tol=EXACT["rtol"])
        assert not full or abs(expected - oracle(scores)) > 1e-4
        seen += train(objective, range(step, step + 1))


@pytest.mark.parametrize("length", [5, 12])
def test_a_queue_need_not_be_a_multiple_of_the_batch(length: int) -> None:
    objective = build(replace(QUEUED, queue_length=length, queue_epoch=0))
    seen = train(objective, range(3))
    assert torch.equal(objective.queue, torch.cat(seen[::-1], 1)[:, :length])


def test_prototypes_stay_unit_vectors_and_are_frozen_at_first() -> None:
    objective = build(TINY)
    # Two norms of 16 entries each, and the division.
    norms, off = torch.ones(24), rounding_bound(2 * (16 + 2) + 1)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), norms, rtol=0, atol=off)
    train(objective, range(3), lr=10.0)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), norms, rtol=0, atol=off)
    frozen = [g for g in objective.param_groups() if g.get("freeze_steps", 0)]
    assert [g["freeze_steps"] for g in frozen] == [round(HORIZON.steps_per_epoch)]
    assert [p is objective.prototypes.weight for g in frozen for p in g["params"]] == [True]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_collapsed_features_give_uniform_codes_and_finite_gradients(precision: torch.dtype) -> None:
    objective = build(QUEUED)
    torch.nn.init.zeros_(objective.network.head[3].weight)
    batch = make_batch(objective.views(), 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = objective(batch, 0)
    out["loss"].backward()
    assert math.isclose(out["code_entropy"].item(), objective.chance_loss, rel_tol=1e-5)
    assert objective.chance_loss == math.log(24)
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_features_that_are_not_finite_give_a_nan_loss_and_no_exception() -> None:
    objective = build(QUEUED)
    batch = make_batch(objective.views(), 4)
    batch.views[0][0] = torch.inf
    assert objective(batch, 0)["loss"].isnan()


def test_a_resumed_run_has_the_bits_of_the_whole_one_queue_and_all(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    objective = {"n_prototypes": 24, "hidden_dim": 32, "feature_dim": 16, "drop_path": 0.1}
    objective |= {"queue_length": 48, "queue_epoch": 0.03, "freeze_prototypes_epochs": 0.05}
    changes = {"steps": 12, "batch_size": 16, "checkpoint_every": 4, "workers": 0, "device": "cpu"}
    api.pretrain("swav_digits", whole, objective=objective, **changes)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "step-00000012")
    half = checkpoint.load_latest(again / "checkpoints", torch.device("cpu"))
    assert half["step"] == 8
    assert half["objective"]["queue"].norm(dim=-1).min() > 0.99  # in use by now
    api.resume(again)
    first, second = (
        checkpoint.load_latest(r / "checkpoints", torch.device("cpu")) for r in (whole, again)
    )
    assert second["step"] == 12
    for name, value in first["objective"].items():
        assert torch.equal(value, second["objective"][name]), name
    assert not torch.equal(half["objective"]["queue"], first["objective"]["queue"])
    assert (whole / "metrics.jsonl").read_text().count("\n") == 12


def test_one_sample_and_accumulation_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1, but SwAV needs at least 2"):
        api.pretrain("swav_digits", tmp_path / "one", batch_size=1)
    with pytest.raises(ValueError, match=r"accumulate is 2, but SwAV's loss"):
        api.pretrain("swav_digits", tmp_path / "slices", accumulate=2)


def test_defaults_are_the_published_ones() -> None:
    config = Config()
    assert (config.n_prototypes, config.hidden_dim, config.feature_dim) == (3000, 2048, 128)
    assert (config.temperature, config.epsilon, config.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (config.queue_length, config.queue_epoch, config.freeze_prototypes_epochs) == (0, 15, 1)
    plan = VIEWS.plan()
    assert plan.resolutions == [(224, 2), (96, 6)]
    for view in plan.views:
        assert view.scale == ((0.14, 1.0) if view.size == 224 else (0.05, 0.14))
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
        assert (view.jitter, view.grey, view.blur, view.solarize) == (0.8, 0.2, 0.5, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("epsilon", -1.0),
        ("n_prototypes", 1),
        ("queue_length", -1),
        ("queue_epoch", -0.5),
        ("freeze_prototypes_epochs", -1.0),
        ("sinkhorn_iterations", 0),
    ],
)
def test_config_names_the_field_and_value_it_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Config(**{field: value})
