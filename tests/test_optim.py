"""Clipping and schedules against their formulas."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from vitrail.nn.schedules import Horizon
from vitrail.optim import (
    Config,
    apply_schedules,
    build_optimizer,
    clip_gradients,
    decay_groups,
    drop_frozen_gradients,
)


def parameters(*values: float) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(4)) for _ in values]
    for parameter, value in zip(made, values, strict=True):
        parameter.grad = torch.full((4,), value)  # of norm 2 * value
    return made


def test_clip_by_tensor_leaves_small_gradients_alone():
    small, large = parameters(0.5, 10.0)
    norm = clip_gradients([small, large], Config(clip=3.0, clip_by="tensor"))
    assert norm == pytest.approx((1.0 + 400.0) ** 0.5)
    assert torch.equal(small.grad, torch.full((4,), 0.5))
    assert large.grad.norm() == pytest.approx(3.0, rel=1e-5)


def test_clip_global_agrees_with_torch():
    ours, theirs = parameters(0.5, 10.0), parameters(0.5, 10.0)
    clip_gradients(ours, Config(clip=3.0, clip_by="global"))
    nn.utils.clip_grad_norm_(theirs, 3.0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad)


def test_no_clip():
    (only,) = parameters(10.0)
    clip_gradients([only], Config(clip=0.0))
    assert torch.equal(only.grad, torch.full((4,), 10.0))


def test_schedules_reach_every_group():
    a, b = parameters(1.0, 1.0)
    config = Config(lr=5e-4, warmup_epochs=10, min_lr=1e-6, weight_decay=0.04, weight_decay_end=0.4)
    optimizer = build_optimizer(config, [{"params": [a]}, {"params": [b], "wd_scale": 0.0}])
    horizon = Horizon(steps=1000, steps_per_epoch=10)
    assert apply_schedules(optimizer, config, horizon, 512, 0) == pytest.approx((0.0, 0.04))
    lr, _ = apply_schedules(optimizer, config, horizon, 512, 100)
    assert lr == pytest.approx(1e-3)
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    lr, decay = apply_schedules(optimizer, config, horizon, 512, 1000)
    assert (lr, decay) == pytest.approx((1e-6, 0.4))


def test_a_constant_rate_and_the_factors_of_a_group():
    a, b, c = parameters(1.0, 1.0, 1.0)
    config = Config(lr=0.1, lr_per_256=False, warmup_epochs=10, min_lr=0.0)
    optimizer = build_optimizer(
        config,
        [
            {"params": [a], "constant_lr": True},
            {"params": [b], "constant_lr": True, "lr_scale": 0.5},
            {"params": [c], "layer_decay": 0.75**2, "lr_scale": 2.0},
        ],
    )
    horizon = Horizon(steps=1000, steps_per_epoch=10)
    for step, scheduled in ((0, 0.0), (50, 0.05), (100, 0.1), (550, 0.05), (1000, 0.0)):
        lr, _ = apply_schedules(optimizer, config, horizon, 256, step)
        assert lr == pytest.approx(scheduled)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1, 0.05, 1.125 * scheduled])


def test_only_lion_waits_for_timm():
    command = "import sys, vitrail.optim; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_frozen_group_moves_only_after_its_steps(name):
    free, frozen = parameters(1.0, 1.0)
    config = Config(name=name, lr=0.1, lr_per_256=False, warmup_epochs=0)
    groups = [{"params": [free]}, {"params": [frozen], "freeze_steps": 1}]
    optimizer = build_optimizer(config, groups)
    for step in (0, 1):
        free.grad, frozen.grad = torch.ones(4), torch.ones(4)
        apply_schedules(optimizer, config, Horizon(10, 1), 256, step)
        drop_frozen_gradients(optimizer, step)
        optimizer.step()
        assert bool(frozen.any()) == (step == 1)
        assert free.any()


@pytest.mark.parametrize("field", ["lr", "clip", "weight_decay"])
def test_negative_values_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"optim.{field} is -1"):
        Config(**{field: -1.0})


def test_a_warm_up_may_reach_its_peak_at_its_last_step():
    horizon = Horizon(steps=100, steps_per_epoch=10)
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    for peak, expected in (("after", 0.9), ("last", 1.0)):
        config = Config(lr=1.0, lr_per_256=False, warmup_epochs=1, warmup_peak=peak)
        optimizer = build_optimizer(config, groups)
        assert apply_schedules(optimizer, config, horizon, 256, 9)[0] == pytest.approx(expected)
        assert apply_schedules(optimizer, config, horizon, 256, 10)[0] == 1.0


def test_weight_decay_may_act_on_all_parameters():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for decay, expected in (("matrices", [0.1, 0.0]), ("all", [0.1, 0.1])):
        config = Config(weight_decay=0.1, weight_decay_end=None, decay=decay)
        optimizer = build_optimizer(config, decay_groups(module))
        apply_schedules(optimizer, config, Horizon(steps=4, steps_per_epoch=2), 8, 1)
        assert [group["weight_decay"] for group in optimizer.param_groups] == expected


def test_adams_epsilon_is_the_configs():
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    assert build_optimizer(Config(), groups).param_groups[0]["eps"] == 1e-8
    assert build_optimizer(Config(eps=1e-6), groups).param_groups[0]["eps"] == 1e-6
    with pytest.raises(ValueError, match=r"optim\.eps is -1"):
        Config(eps=-1.0)
