"""Sampled view parameters: torchvision's distributions, however the batch is split."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import ColorJitter
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from vitrail.data.views.contract import View
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop, ViewParams, ViewPlan
from vitrail.nn.random import Draws

GREY = {"mean": (0.5,), "std": (0.5,)}


def sizes_of(n: int, height: int = 375, width: int = 500) -> torch.Tensor:
    return torch.tensor([[height, width]] * n)


def draws_of(n: int, seed: int = 0, step: int = 0) -> Draws:
    return Draws(seed, step, n, 0, n)


def drawn(params: ViewParams) -> dict[str, torch.Tensor]:
    """Returns all parameters by name; "on" by the name of its operation."""
    tensors = {"box": params.box, "flip": params.flip}
    for operation, of_operation in params.operations.items():
        tensors |= {k if k != "on" else operation: v for k, v in of_operation.items()}
    return tensors


def test_multi_crop_is_dinos():
    plan = MultiCrop().plan()
    assert plan.resolutions == [(224, 2), (96, 10)]
    assert [v.blur for v in plan.views] == [1.0, 0.1] + [0.5] * 10
    assert [v.solarize for v in plan.views] == [0.0, 0.2] + [0.0] * 10
    assert {v.scale for v in plan.views[:2]} == {(0.4, 1.0)}
    assert {v.scale for v in plan.views[2:]} == {(0.05, 0.4)}
    for v in plan.views:
        assert (v.jitter, v.brightness, v.contrast, v.saturation, v.hue) == (
            0.8,
            0.4,
            0.4,
            0.2,
            0.1,
        )
        assert (v.flip, v.grey, v.blur_sigma) == (0.5, 0.2, (0.1, 2.0))


def test_resolutions_are_maximal_runs_in_order():
    sizes = (32, 32, 16, 32)
    plan = ViewPlan(tuple(View(s, (0.5, 1)) for s in sizes), (0,) * 3, (1,) * 3)
    assert plan.resolutions == [(32, 2), (16, 1), (32, 1)]


@pytest.mark.parametrize(
    ("size", "scale"),
    [((375, 500), (0.05, 0.4)), ((375, 500), (0.4, 1.0)), ((60, 400), (0.3, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(size, scale):
    n = 6000
    plan = ViewPlan((View(96, scale),), (0,) * 3, (1,) * 3)
    ours = plan.sample(draws_of(n), sizes_of(n, *size)).box[0].double()
    image = torch.empty(3, *size)
    torch.manual_seed(0)
    boxes = [TorchvisionCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(boxes).double()
    for column in range(4):
        a, b = ours[:, column].sort().values, theirs[:, column].sort().values
        # Kolmogorov-Smirnov: the largest gap between the two empirical distributions.
        grid = torch.cat([a, b]).unique()
        gap = (
            torch.searchsorted(a, grid, right=True) - torch.searchsorted(b, grid, right=True)
        ).abs()
        assert gap.max() / n < 1.95 * math.sqrt(2 / n), column  # p = 0.001
    area, log_ratio = ours[:, 2] * ours[:, 3], (ours[:, 3] / ours[:, 2]).log()
    their_area, their_ratio = theirs[:, 2] * theirs[:, 3], (theirs[:, 3] / theirs[:, 2]).log()
    assert abs(area.mean() / their_area.mean() - 1) < 0.02
    assert abs(log_ratio.mean() - their_ratio.mean()) < 0.02
    assert abs(log_ratio.std() - their_ratio.std()) < 0.02


def test_every_place_is_equally_likely():
    n = 9000
    plan = ViewPlan((View(4, (0.11, 0.12), (1.0, 1.0)),), (0,) * 3, (1,) * 3)  # one pixel of nine
    box = plan.sample(draws_of(n), sizes_of(n, 3, 3)).box[0]
    assert (box[:, 2:] == 1).all()
    counts = (box[:, 0] * 3 + box[:, 1]).bincount(minlength=9)
    assert (counts - n / 9).abs().max() < 4.5 * (n * 8 / 81) ** 0.5


def test_fallback_box_is_torchvisions_central_one():
    for size in ((10, 400), (400, 10), (1, 9), (9, 1), (33, 500)):
        scale = (1.0, 1.0)  # never fits these shapes
        params = ViewPlan((View(8, scale),), (0,) * 3, (1,) * 3).sample(
            draws_of(1), sizes_of(1, *size)
        )
        expected = TorchvisionCrop.get_params(torch.empty(3, *size), list(scale), [3 / 4, 4 / 3])
        assert params.box[0, 0].tolist() == list(expected)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2**32), st.floats(1e-4, 1), st.data()
)
def test_boxes_lie_inside_images_of_any_size(height, width, seed, low, data):
    high = data.draw(st.floats(low, 1))
    ratio_low = data.draw(st.floats(0.05, 20))
    ratio = (ratio_low, data.draw(st.floats(ratio_low, 20)))
    plan = ViewPlan((View(4, (low, high), ratio),), (0,) * 3, (1,) * 3)
    top, left, h, w = plan.sample(draws_of(3, seed), sizes_of(3, height, width)).box[0].unbind(1)
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_probabilities_and_factors():
    n = 20000
    params = drawn(MultiCrop(n_local=1).plan().sample(draws_of(n), sizes_of(n)))
    for name, expected in {"flip": 0.5, "jitter": 0.8, "grey": 0.2}.items():
        share = params[name].double().mean(1)
        assert torch.allclose(share, torch.full_like(share, expected), atol=0.015), name
    blurred = params["blur"].double().mean(1)
    assert torch.allclose(blurred, torch.tensor([1.0, 0.1, 0.5]).double(), atol=0.015)
    assert torch.allclose(
        params["solarize"].double().mean(1), torch.tensor([0, 0.2, 0]).double(), atol=0.015
    )
    sigma = params["sigma"][0]
    assert sigma.min() >= 0.1
    assert sigma.max() <= 2
    assert abs(sigma.mean() - 1.05) < 0.02
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        factor = params["factors"][..., column]
        assert low - 1e-6 <= factor.min() < low + 0.01
        assert high - 0.01 < factor.max() <= high + 1e-6
        assert abs(factor.mean() - (low + high) / 2) < 0.005
    orders, counts = params["order"].flatten(0, 1).unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (orders.sort(1).values == torch.arange(4)).all()
    assert abs(counts / counts.sum() - 1 / 24).max() < 0.005


def test_factor_range_is_torchvisions_also_past_one():
    jitter = ColorJitter(brightness=1.5)
    view = View(8, (0.5, 1), jitter=1, brightness=1.5)
    plan = ViewPlan((view,), (0,) * 3, (1,) * 3)
    factor = drawn(plan.sample(draws_of(4000), sizes_of(4000)))["factors"]
    assert jitter.brightness == (0, 2.5)
    assert 0 <= factor[..., 0].min() < 0.01
    assert 2.49 < factor[..., 0].max() <= 2.5


def test_draws_of_one_view_are_uncorrelated():
    params = drawn(MultiCrop(n_local=2).plan().sample(draws_of(20000), sizes_of(20000)))
    columns = [params[name] for name in ("flip", "jitter", "grey", "blur", "sigma", "solarize")]
    columns += list(params["factors"].unbind(-1)) + list(params["box"].unbind(-1)[2:])
    rows = torch.stack([c[v].double() for v in (1, 2) for c in columns if c[v].double().std() > 0])
    between = torch.corrcoef(rows) - torch.eye(len(rows))
    height_width = between.abs() > 0.1  # of one box, both grow with the scale
    assert height_width.sum() == 4
    assert between[~height_width].abs().max() < 0.035


def test_slices_of_ranks_are_the_whole():
    plan, n = MultiCrop(n_local=3).plan(), 12
    sizes = torch.tensor([[100 + 7 * i, 300 - 9 * i] for i in range(n)])
    whole = plan.sample(Draws(3, 17, n, 0, n), sizes)
    for start, count in ((0, 4), (4, 4), (8, 4), (5, 2)):
        part = plan.sample(Draws(3, 17, n, start, count), sizes[start : start + count])
        cut = drawn(whole.narrow(start, count))
        for name, tensor in drawn(part).items():
            assert torch.equal(tensor, cut[name]), name


def test_a_sample_does_not_depend_on_the_others():
    plan = MultiCrop(n_local=1).plan()
    one, other = sizes_of(4), sizes_of(4)
    other[1:] = 17
    a, b = plan.sample(draws_of(4), one), plan.sample(draws_of(4), other)
    assert torch.equal(a.box[:, 0], b.box[:, 0])
    assert not torch.equal(a.box[:, 1:], b.box[:, 1:])


def test_steps_and_seeds_differ():
    plan = MultiCrop(n_local=0).plan()
    boxes = [plan.sample(draws_of(4, *key), sizes_of(4)).box for key in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 0}, "size is 0"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (0.5, 1.1)}, "scale is"),
        ({"scale": (0.5, 0.4)}, "scale is"),
        ({"scale": (float("nan"), 1.0)}, "scale is"),
        ({"ratio": (0.0, 1.0)}, "ratio is"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"jitter": -0.1}, "jitter is"),
        ({"grey": 2.0}, "grey is"),
        ({"blur": -1.0}, "blur is"),
        ({"solarize": 1.01}, "solarize is"),
        ({"brightness": -0.4}, "brightness is"),
        ({"hue": 0.6}, "hue is 0.6"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma is"),
    ],
)
def test_view_refuses_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        View(**({"size": 8, "scale": (0.5, 1.0)} | change))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MultiCrop(mean=(0.5,)), "mean has 1 values and std has 3"),
        (MultiCrop(std=(0.5, 0.5, 0.0)), "std must be above 0"),
        (MultiCrop(n_local=-1), "n_local is -1"),
        (MultiCrop(global_scale=(0.4, 1.5)), "scale"),
        (MultiCrop(local_size=0), "size is 0"),
        (MultiCrop(**GREY), "needs 3 channels"),
        (MultiCrop(**GREY, grey=0), "saturation is 0.2, which needs 3 channels"),
        (MultiCrop(**GREY, grey=0, saturation=0), "hue is 0.1, which needs 3 channels"),
        (RandomResizedCrop(scale=(0.0, 1.0)), "scale"),
        (RandomResizedCrop(blur=1.5), "blur is 1.5"),
        (RandomResizedCrop(**GREY, grey=0.1), "grey is 0.1, which needs 3 channels"),
        (RandomResizedCrop(**GREY, jitter=0.1, saturation=0), "hue is 0.1, which needs 3 channels"),
    ],
)
def test_plans_refuse_by_name(config, named):
    with pytest.raises(ValueError, match=named):
        config.plan()


def test_one_channel_plans():
    assert len(MultiCrop(**GREY, grey=0, saturation=0, hue=0).plan().mean) == 1
    assert len(MultiCrop(**GREY, jitter=0, grey=0).plan().mean) == 1
    assert len(RandomResizedCrop(**GREY).plan().mean) == 1


def test_supervised_view_changes_no_colours():
    params = RandomResizedCrop().plan().sample(draws_of(200), sizes_of(200))
    assert params.operations.keys() == {"jitter", "grey", "blur", "solarize"}
    for name, of_operation in params.operations.items():
        assert not of_operation["on"].any(), name
    assert params.flip.any()


def test_a_supervised_view_is_what_its_fields_say():
    n = 20000
    config = RandomResizedCrop(
        size=32,
        scale=(0.2, 0.9),
        ratio=(0.5, 2.0),
        flip=0.3,
        jitter=0.6,
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        hue=0.05,
        grey=0.25,
        blur=0.7,
        solarize=0.15,
    )
    params = drawn(config.plan().sample(draws_of(n), sizes_of(n)))
    for name in ("flip", "jitter", "grey", "blur", "solarize"):
        share = params[name].double().mean().item()
        assert abs(share - getattr(config, name)) < 0.015, name
    spread = (params["factors"].amax((0, 1)) - params["factors"].amin((0, 1))) / 2
    strengths = torch.tensor([0.1, 0.2, 0.3, 0.05])
    torch.testing.assert_close(spread, strengths, atol=0.002, rtol=0)
    (view,) = config.plan().views
    assert (view.size, view.scale, view.ratio) == (32, (0.2, 0.9), (0.5, 2.0))


def test_empty_plan_is_refused():
    with pytest.raises(ValueError, match="views is empty"):
        ViewPlan((), (0.5,), (0.5,))
