import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.objectives.tiny import CROPS, HORIZON, build, in_float64, make_batch
from tests.rounding import EXACT, float64_kept
from vitrail.nn.coding_rate import coding_rate, grouped_coding_rate
from vitrail.objectives.contract import Objective
from vitrail.objectives.simdino import Config, cross_view_cosine
from vitrail.recipes.named import get_recipe

TINY = Config(views=CROPS, hidden_dim=32, bottleneck_dim=16)
VARIANTS = {
    "student": replace(TINY, expand="student"),
    # fewer than the 8 vectors: the other way of reducing the coding rate
    "p < n": replace(TINY, bottleneck_dim=6),
    "local": replace(TINY, second_moment="local", groups=4),
    "local across ranks": replace(TINY, second_moment="local", groups=1),
}


def outputs(objective: Objective, batch) -> tuple[np.ndarray, np.ndarray]:
    """z_s [V, B, P] and z_t [2, B, P], view by view, in float64."""
    sizes = batch.size
    images = [view for v in batch.views for view in v.split(sizes)]
    with torch.no_grad():
        z_s = [objective.student.head(objective.student.backbone(x).pooled) for x in images]
        z_t = [objective.teacher.head(objective.teacher.backbone(x).pooled) for x in images[:2]]
    return tuple(torch.stack(z).double().numpy() for z in (z_s, z_t))


def book_loss(z_s: np.ndarray, z_t: np.ndarray, config: Config) -> float:
    """(7.2.34) without its i = j pairs, R_ε(Z) = ½ logdet(I + p/(B ε²) ZᵀZ), γ of the facts."""
    views, count, p = z_s.shape
    distance = np.mean(
        [
            0.5 * np.sum((z_t[i, b] - z_s[j, b]) ** 2)
            for b in range(count)
            for i in range(2)
            for j in range(views)
            if i != j
        ]
    )
    rates = []
    for i in range(2):
        z = z_s[i] if config.expand == "student" else (z_s[i] + z_t[i]) / 2
        matrix = np.eye(p) + p / (count * config.eps**2) * z.T @ z
        rates.append(np.linalg.slogdet(matrix)[1] / 2)
    gamma = (p + count) / (p * count) if config.gamma is None else config.gamma
    return config.coeff * distance - gamma * np.mean(rates)


def apart(objective: Objective) -> Objective:
    """Makes the teacher another network than the student."""
    with torch.no_grad():
        for p in objective.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return objective


@float64_kept()
@pytest.mark.parametrize("expand", ["student", "mean"])
@pytest.mark.parametrize("count", [2, 8, 40])  # below and above p = 16
@pytest.mark.parametrize("changes", [{}, {"gamma": 0.3, "coeff": 2.0, "eps": 0.05}])
def test_loss_is_the_books(expand: str, count: int, changes: dict[str, float]) -> None:
    config = replace(TINY, expand=expand, drop_path=0.0, **changes)
    objective = apart(build(config)).double()
    batch = in_float64(make_batch(objective.views(), count))
    expected = book_loss(*outputs(objective, batch), config)
    out = objective(batch, 0)
    assert math.isclose(out["loss"].item(), expected, rel_tol=0, abs_tol=EXACT["atol"])
    assert out["features"].shape == (2 * count, 32)
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


def test_similarity_leaves_equal_views_out() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 7, 6, dtype=torch.float64), dim=-1)
    expected = [(rows[i] * rows[j]).sum(-1).mean() for i in range(2) for j in range(5) if i != j]
    found = cross_view_cosine(rows, rows[:2])
    torch.testing.assert_close(found, torch.stack(expected).mean(), **EXACT)


@float64_kept()
def test_official_loss_is_coeff_less() -> None:
    objective = build(replace(TINY, coeff=1.5, drop_path=0.0)).double()
    out = objective(in_float64(make_batch(objective.views(), 8)), 0)
    gamma = (16 + 8) / (16 * 8)
    official = -1.5 * out["similarity"] - gamma * out["coding_rate"]
    torch.testing.assert_close(out["loss"].detach(), official + 1.5, **EXACT)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_collapsed_networks_give_the_rate_of_one_direction_and_finite_gradients(
    precision: torch.dtype,
) -> None:
    objective = build(replace(TINY, drop_path=0.0))
    batch = make_batch(objective.views(), 32)
    for view in batch.views:
        view.copy_(view[:1].expand_as(view))
    for network in (objective.student, objective.teacher):
        # Next to this, what the views of the one image differ in is little.
        torch.nn.init.constant_(network.head.mlp[4].bias, 10.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = objective(batch, 0)
    out["loss"].backward()
    assert math.isclose(out["coding_rate"].item(), math.log(1 + 16 / 0.05) / 2, rel_tol=1e-4)
    assert out["similarity"] > 0.99
    assert all(p.grad.isfinite().all() for p in objective.student.parameters())


def test_not_finite_features_give_a_nan_loss_and_no_exception() -> None:
    objective = build(TINY)
    batch = make_batch(objective.views(), 4)
    batch.views[0][0] = torch.inf
    assert objective(batch, 0)["loss"].isnan()


def test_one_sample_is_too_few() -> None:
    assert build(TINY).min_batch_size == 2
    assert build(TINY).batch_coupled


def test_teacher_momentum_is_the_published_schedule() -> None:
    steps = HORIZON.steps
    published = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * np.arange(steps) / steps))
    objective = build(TINY)
    assert np.allclose([objective.momentum(s) for s in range(steps)], published, atol=1e-12)


def test_eps_squares_to_the_published_value() -> None:
    assert math.isclose(Config().eps ** 2, 0.05)
    assert (Config().expand, Config().coeff, Config().bottleneck_dim) == ("mean", 1.0, 256)


@pytest.mark.parametrize(
    ("field", "value"),
    [("eps", 0.0), ("gamma", -1.0), ("momentum_teacher", 2.0), ("groups", 0)],
)
def test_config_names_the_field_and_value_it_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Config(**{field: value})


@float64_kept()
@pytest.mark.parametrize(("count", "groups"), [(8, 2), (40, 2), (64, 4)])  # below and above p = 16
def test_a_local_second_moment_is_that_of_the_published_code(count: int, groups: int) -> None:
    """SimDINO 8149fc4, reduce_cov=0 on so many ranks: each its ZᵀZ, γ and scale of them all."""
    config = replace(TINY, second_moment="local", groups=groups, drop_path=0.0)
    objective = apart(build(config)).double()
    batch = in_float64(make_batch(objective.views(), count))
    z_s, z_t = outputs(objective, batch)
    p = z_s.shape[2]
    expected = []
    for rows in np.split(np.arange(count), groups):
        for view in range(2):
            z = (z_s[view, rows] + z_t[view, rows]) / 2
            matrix = np.eye(p) + p / (len(rows) * groups * config.eps**2) * z.T @ z
            expected.append(np.linalg.slogdet(matrix)[1] / 2)
    out = objective(batch, 0)
    assert out["coding_rate"].item() == pytest.approx(np.mean(expected), abs=EXACT["atol"])
    gamma = (p + count) / (p * count)
    official = -out["similarity"] - gamma * out["coding_rate"]
    torch.testing.assert_close(out["loss"].detach(), official + 1, **EXACT)


def test_the_published_expansion_of_random_vectors() -> None:
    """At 8 x 64, P = 256, eps 0.05: 0.429, which no epsilon of a global second moment gives."""
    z = torch.nn.functional.normalize(torch.randn(2, 512, 256, dtype=torch.float64), dim=-1)
    recipe = get_recipe("simdino_vitb16_in1k")
    config = recipe.objective
    gamma = (256 + 512) / (256 * 512)
    assert recipe.batch_size // config.groups == 64
    assert config.second_moment == "local"
    local = gamma * grouped_coding_rate(z, config.eps, config.groups).mean()
    assert local.item() == pytest.approx(0.429, abs=0.001)
    wide = gamma * coding_rate(z, (8 * 0.05) ** 0.5).mean()
    assert wide.item() == pytest.approx(0.843, abs=0.002)


def test_groups_that_do_not_divide_the_batch_are_refused() -> None:
    objective = build(replace(TINY, second_moment="local", groups=3))
    with pytest.raises(ValueError, match="3 groups of 8 vectors: groups must divide the global"):
        objective(make_batch(objective.views(), 8), 0)
