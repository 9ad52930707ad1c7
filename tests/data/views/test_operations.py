"""The table of operations: rows keep the contract, and one more row moves nothing of theirs."""

from dataclasses import dataclass, fields

import pytest
import torch

from vitrail.data.views.apply_batched import crop_batched, recolour_batched
from vitrail.data.views.apply_cpu import apply_native
from vitrail.data.views.contract import Change, Operation, View, check_probability, operations_of
from vitrail.data.views.operations.jitter import ORDERS
from vitrail.data.views.plan import MultiCrop, ViewParams, ViewPlan
from vitrail.data.views.registry import OPERATIONS, OperationRow
from vitrail.nn.random import Draws
from vitrail.registry import resolve

DRAWS = Draws(seed=5, step=3, batch_size=40, start=8, count=24)


@dataclass(frozen=True)
class UpDownView(View):
    """A view to which another package has added a field."""

    up_down: float = 0.5


class UpDown(Operation):
    """Turns views upside down."""

    uniforms = 1

    def check(self, view):
        check_probability(view, "up_down")

    def draw(self, view, uniforms):
        return {"on": uniforms[:, 0] < view.up_down}

    def apply(self, pixels, drawn, white):
        return pixels.flip(2)

    def apply_batched(self, drawn, views):
        return [Change.where(drawn["on"], _up_down)]


def _up_down(pixels, _, __):
    return pixels.flip(2)


@pytest.fixture
def up_down(monkeypatch):
    monkeypatch.setitem(
        OPERATIONS._registered, "up_down", OperationRow(UpDown, "upside down", ("up_down",))
    )


def plan(probability: float | None = None) -> ViewPlan:
    """Two global and two local views with everything drawn often; with the field if it is given."""
    recipe = MultiCrop(40, 24, n_local=2, jitter=0.8, grey=0.3, blur=(0.5,) * 3, solarize=0.5)
    views = recipe.plan().views
    if probability is not None:
        views = tuple(UpDownView(**vars(view), up_down=probability) for view in views)
    return ViewPlan(views, (0.5,) * 3, (0.2,) * 3)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(DRAWS.count, 3, 9, 12, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (54, 72), mode="bicubic").clamp(0, 1) * 255).to(
        torch.uint8
    )


def sample(views: ViewPlan) -> ViewParams:
    return views.sample(DRAWS, torch.tensor([[54, 72]] * DRAWS.count))


def by_both(params: ViewParams) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The views image by image, and those of the batch at once, [V, B, C, S, S] each."""
    shapes = [(v, DRAWS.count, 3, side, side) for side, v in params.plan.resolutions]
    native, batched = ([torch.empty(shape) for shape in shapes] for _ in range(2))
    apply_native(images(), params, native)
    crop_batched(images(), params, batched)
    recolour_batched([view.flatten(0, 1) for view in batched], params, 255.0)
    return native, batched


def test_rows_are_in_the_order_of_application_and_read_fields_of_views():
    assert list(OPERATIONS.own) == ["jitter", "grey", "blur", "solarize"]
    known = {field.name for field in fields(View)}
    for name, row in OPERATIONS.own.items():
        assert set(row.fields) <= known, name
        assert issubclass(resolve(row.operation), Operation), name


def test_the_oldest_operations_share_the_columns_behind_the_box_and_the_flip():
    columns = [operation.columns for operation in operations_of(plan().views[0]).values()]
    assert [c for of_operation in columns for c in of_operation] == list(range(23, 33))
    for operation in operations_of(plan().views[0]).values():
        assert len(operation.columns) == operation.uniforms


def test_draws_are_those_of_every_earlier_version():
    """The columns as `plan.py` read them before operations were classes."""
    views = plan()
    params, n_views = sample(views), len(views.views)
    u = DRAWS.uniform("views", 33, views=n_views).view(n_views, DRAWS.count, 33)
    drawn = params.operations
    assert torch.equal(params.flip, u[..., 22] < 0.5)
    assert torch.equal(drawn["jitter"]["on"], u[..., 23] < 0.8)
    assert torch.equal(drawn["jitter"]["factors"][..., 0], 0.6 + (1.4 - 0.6) * u[..., 24])
    assert torch.equal(drawn["jitter"]["factors"][..., 3], 0.1 * (2 * u[..., 27] - 1))
    assert torch.equal(drawn["jitter"]["order"], ORDERS[(u[..., 28] * 24).long()])
    assert torch.equal(drawn["grey"]["on"], u[..., 29] < 0.3)
    assert torch.equal(drawn["blur"]["on"], u[..., 30] < 0.5)
    assert torch.equal(drawn["blur"]["sigma"], 0.1 + (2.0 - 0.1) * u[..., 31])
    assert torch.equal(drawn["solarize"]["on"][1], u[1, :, 32] < 0.5)
    assert not drawn["solarize"]["on"][2:].any()


@pytest.mark.parametrize("probability", [None, 0.0, 0.5])
def test_another_operation_moves_no_draw(up_down, probability):
    params, before = sample(plan(probability)), sample(plan())
    assert torch.equal(params.box, before.box)
    assert torch.equal(params.flip, before.flip)
    assert set(params.operations) - set(before.operations) == (
        set() if probability is None else {"up_down"}
    )
    for operation, tensors in before.operations.items():
        for name, tensor in tensors.items():
            assert torch.equal(params.operations[operation][name], tensor), (operation, name)


def test_it_draws_from_a_stream_of_its_own(up_down):
    drawn = sample(plan(0.5)).operations["up_down"]["on"]
    own = DRAWS.uniform("views.up_down", 1, views=4).view(4, DRAWS.count) < 0.5
    assert torch.equal(drawn, own)
    assert drawn.any(1).all()
    assert not drawn.all(1).any()


def test_undrawn_it_changes_no_pixel(up_down):
    for kind, before in zip(by_both(sample(plan(0.0))), by_both(sample(plan())), strict=True):
        for view, expected in zip(kind, before, strict=True):
            assert torch.equal(view, expected)


def test_both_appliers_apply_it_alike_to_those_that_drew_it(up_down):
    params, before = sample(plan(0.5)), sample(plan())
    on = params.operations["up_down"]["on"].split([2, 2])
    for kind, plain in zip(by_both(params), by_both(before), strict=True):
        for rows, view, expected in zip(on, kind, plain, strict=True):
            turned = torch.where(rows[..., None, None, None], expected.flip(3), expected)
            assert torch.equal(view, turned)


def test_parts_and_views_are_cut_with_the_others(up_down):
    params = sample(plan(0.5))
    part = params.narrow(3, 5).of_views(1, 2)
    whole = params.operations["up_down"]["on"]
    assert torch.equal(part.operations["up_down"]["on"], whole[1:3, 3:8])


def test_its_fields_are_checked(up_down):
    with pytest.raises(ValueError, match="up_down is 1"):
        UpDownView(8, (0.5, 1.0), up_down=1.5)
