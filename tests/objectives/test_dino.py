import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss

from tests.objectives.tiny import CROPS, HORIZON, build, in_float64, make_batch, narrow
from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.data.contract import Batch
from vitrail.nn.schedules import Horizon
from vitrail.objectives.dino import DINO, Config, cross_view_entropy, prototypes

TINY = Config(views=CROPS, out_dim=64, hidden_dim=32, bottleneck_dim=16)
VARIANTS = {"free norms": replace(TINY, norm_last_layer=False, teacher_temp=0.07)}

TAU_S, TAU_T = 0.125, 0.0625  # exact in float32, in which lightly keeps one of them


# Of the logits' size, so that features are logits.
PROTOTYPES = torch.eye(40, dtype=torch.float64)


def logits(views: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(views)
    return scale * torch.randn(views, 6, 40, generator=generator, dtype=torch.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def oracle(student: torch.Tensor, teacher: torch.Tensor, center: torch.Tensor) -> float:
    """Algorithm 1 with multi-crop: every teacher view against every other student view."""
    s, t, c = (x.double().numpy() for x in (student, teacher, center))
    terms = [
        -(np.exp(log_softmax((t[i] - c) / TAU_T)) * log_softmax(s[j] / TAU_S)).sum(-1).mean()
        for i in range(2)
        for j in range(len(s))
        if i != j
    ]
    assert len(terms) == 2 * len(s) - 2
    return float(np.mean(terms))


@float64_kept()
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("views", [2, 3, 12])
def test_loss_is_the_formula(views: int, scale: float) -> None:
    student, teacher, center = logits(views, scale), logits(2, scale), logits(1)[0, 0]
    loss, entropy = cross_view_entropy(student, PROTOTYPES, teacher, center, TAU_S, TAU_T)
    exact = oracle(student, teacher, center)
    assert math.isclose(loss.item(), exact, rel_tol=EXACT["rtol"])
    log_q = log_softmax((teacher - center).double().numpy() / TAU_T)
    expected = -(np.exp(log_q) * log_q).sum(-1).mean()
    assert math.isclose(entropy.item(), expected, rel_tol=EXACT["rtol"], abs_tol=EXACT["atol"])


@float64_kept()
@pytest.mark.parametrize("views", [2, 12])
def test_loss_gradient_and_centre_equal_lightlys(views: int) -> None:
    peer = DINOLoss(40, teacher_temp=TAU_T, student_temp=TAU_S, center_momentum=0.9).double()
    peer.center.copy_(logits(1)[0, 0])
    center = peer.center.flatten().clone()
    ours, theirs = (logits(views).requires_grad_() for _ in range(2))
    loss, _ = cross_view_entropy(ours, PROTOTYPES, logits(2), center, TAU_S, TAU_T)
    expected = peer(list(logits(2)), list(theirs), teacher_temp=TAU_T)
    torch.testing.assert_close(loss, expected, **EXACT)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)

    objective = build(replace(TINY, out_dim=40)).double()
    objective.center.copy_(center)
    objective.after_step({"teacher_mean": logits(2).mean((0, 1))}, 0)
    torch.testing.assert_close(objective.center, peer.center.flatten(), **EXACT)


def test_products_and_sums_are_float32_under_autocast() -> None:
    student, teacher = logits(4).float().requires_grad_(), logits(2).float()
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_view_entropy(student, weight, teacher, torch.zeros(40), TAU_S, TAU_T)
    assert loss.dtype == torch.float32
    s, w = student.detach().double() / TAU_S, weight.double()
    expected = oracle(TAU_S * s @ w.T, teacher, torch.zeros(40))
    # A logit is a product of 40 terms; the loss, a sum over 40 prototypes, is off by as much as the
    # largest of them, and by what the sum and its exponentials add. (bfloat16 would be off by 0.1.)
    off = rounding_bound(2 * 40 + 4, scale=(s.abs() @ w.T.abs()).max().item())
    assert off < 0.02
    assert math.isclose(loss.item(), expected, rel_tol=0, abs_tol=off)
    loss.backward()
    found, student.grad = student.grad, None
    cross_view_entropy(student, weight, teacher, torch.zeros(40), TAU_S, TAU_T)[0].backward()
    assert torch.equal(found, student.grad)


def plain_gradients(objective: DINO, batch: Batch) -> dict[str, torch.Tensor]:
    """Computes the loss through all logits, softmaxes and autograd."""
    views = [x.unflatten(0, (-1, batch.size)) for x in batch.views]
    n_views = sum(len(x) for x in views)
    _, z = objective.student(batch.views)
    s = (prototypes(objective.student)(z) / 0.1).unflatten(0, (n_views, -1)).log_softmax(-1)
    with torch.no_grad():
        _, z_t = objective.teacher([batch.views[0][: 2 * batch.size]])
        t = prototypes(objective.teacher)(z_t).unflatten(0, (2, -1)) - objective.center
        q = (t / objective.teacher_temp(0)).softmax(-1)
    pairs = [-(q[i] * s[j]).sum(-1).mean() for i in range(2) for j in range(n_views) if i != j]
    objective.zero_grad()
    torch.stack(pairs).mean().backward()
    return {n: p.grad.clone() for n, p in objective.student.named_parameters() if p.requires_grad}


@float64_kept()
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_gradients_of_all_parameters_are_those_of_the_plain_loss(norm_last_layer: bool) -> None:
    config = replace(TINY, norm_last_layer=norm_last_layer, drop_path=0.0)
    objective = build(config).double()
    with torch.no_grad():
        layer = prototypes(objective.student)
        layer.weight_g.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
        objective.center.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    batch = in_float64(make_batch(objective.views(), 6))
    expected = plain_gradients(objective, batch)
    assert ("head.last_layer.weight_g" in expected) != norm_last_layer
    objective.zero_grad()
    objective(batch, 0)["loss"].backward()
    for name, p in objective.student.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], **EXACT)


@float64_kept()
def test_forward_is_the_loss_of_the_two_networks_and_kl_is_what_entropy_leaves() -> None:
    objective = build(replace(TINY, drop_path=0.0)).double()
    batch = in_float64(make_batch(objective.views(), 4))
    out = objective(batch, 0)
    with torch.no_grad():
        images = [*batch.views[0].split(4), *batch.views[1].split(4)]
        student = torch.stack(
            [objective.student.head(objective.student.backbone(x).pooled) for x in images]
        )
        features = [objective.teacher.backbone(x).pooled for x in images[:2]]
        w, w_t = (prototypes(net).weight() for net in (objective.student, objective.teacher))
        teacher = torch.stack([objective.teacher.head(f) for f in features]) @ w_t.T
    loss, entropy = cross_view_entropy(student, w, teacher, objective.center, 0.1, 0.04)
    torch.testing.assert_close(out["loss"].detach(), loss, **EXACT)
    torch.testing.assert_close(out["teacher_entropy"], entropy, **EXACT)
    torch.testing.assert_close(out["kl"], loss - entropy, **EXACT)
    torch.testing.assert_close(out["teacher_mean"], teacher.mean((0, 1)), **EXACT)
    torch.testing.assert_close(out["features"], torch.cat(features), **EXACT)
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


@float64_kept()
def test_accumulated_slices_give_the_gradient_and_centre_of_the_whole_batch() -> None:
    whole, sliced = build(TINY).double(), build(TINY).double()
    batch = in_float64(make_batch(whole.views(), 8))
    out = whole(batch, 0)
    out["loss"].backward()
    outs = [sliced(narrow(batch, start, 4), 0) for start in (0, 4)]
    (sum(o["loss"] for o in outs) / 2).backward()
    for p, q in zip(whole.student.parameters(), sliced.student.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, **EXACT)
    mean = (outs[0]["teacher_mean"] + outs[1]["teacher_mean"]) / 2
    torch.testing.assert_close(mean, out["teacher_mean"], **EXACT)


@pytest.mark.parametrize(("final", "warmup"), [(0.04, 0), (0.07, 30), (0.07, 1), (0.06, 5)])
@pytest.mark.parametrize("per_epoch", [1, 7, 0.1, 12.5])
def test_teacher_temperature_is_the_published_schedule(
    final: float, warmup: int, per_epoch: float
) -> None:
    epochs = 40
    published = np.concatenate((np.linspace(0.04, final, warmup), np.ones(epochs - warmup) * final))
    objective = build(replace(TINY, teacher_temp=final, warmup_teacher_temp_epochs=warmup))
    objective.horizon = Horizon(round(epochs * per_epoch), per_epoch)
    for step in range(round(epochs * per_epoch)):
        epoch = math.floor(round(step / per_epoch, 6))
        assert math.isclose(objective.teacher_temp(step), published[epoch], rel_tol=1e-9)


def test_teacher_momentum_is_the_published_schedule() -> None:
    steps = HORIZON.steps
    published = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * np.arange(steps) / steps))
    objective = build(TINY)
    assert np.allclose([objective.momentum(s) for s in range(steps)], published, atol=1e-12)


def test_after_step_moves_the_teacher_by_the_momentum_of_that_step() -> None:
    objective = build(TINY)
    old = objective.teacher.head.mlp[0].weight.clone()
    with torch.no_grad():
        objective.student.head.mlp[0].weight.add_(1)
    objective.after_step({"teacher_mean": torch.ones(64)}, 10)
    moved = objective.teacher.head.mlp[0].weight - old
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - objective.momentum(10)))
    torch.testing.assert_close(objective.center, torch.full((64,), 0.1))


def test_only_the_prototypes_are_frozen_and_for_the_published_epoch() -> None:
    objective = build(TINY)
    groups = objective.param_groups()
    frozen = [g for g in groups if g.get("freeze_steps", 0)]
    assert [g["freeze_steps"] for g in frozen] == [round(HORIZON.steps_per_epoch)]
    assert [id(p) for g in frozen for p in g["params"]] == [
        id(objective.student.head.last_layer.weight_v)
    ]


def test_defaults_are_the_published_ones() -> None:
    config = Config()
    assert (config.out_dim, config.hidden_dim, config.bottleneck_dim) == (65536, 2048, 256)
    assert (config.student_temp, config.teacher_temp, config.center_momentum) == (0.1, 0.04, 0.9)
    assert (config.momentum_teacher, config.drop_path) == (0.996, 0.1)
    assert build(TINY).chance_loss == math.log(64)


@pytest.mark.parametrize(
    ("field", "value"),
    [("student_temp", 0.0), ("teacher_temp", -1.0), ("center_momentum", 1.5), ("out_dim", 1)],
)
def test_config_names_the_field_and_value_it_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Config(**{field: value})
