"""Every objective on every backbone: it trains a step, or it is refused by name at build."""

import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.objectives.tiny import CONFIGS, HORIZON, build, make_backbone, make_batch, variants
from vitrail.backbones.registry import BACKBONES
from vitrail.data.views.plan import MultiCrop
from vitrail.objectives import simdino
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective
from vitrail.objectives.registry import OBJECTIVES, objective_name

# The larger ones of timm's modules cannot be shrunk, and differ in size only.
TIMMS = ("resnet18_small", "swin_nano_patch2_32")
AFFORDABLE = [n for n, m in BACKBONES.items() if "depth" in m.options() or n in TIMMS]
SIZES = re.compile(r"_(nano|micro|tiny|small|medium|base|large|huge|giant)|_patch\d+|_\d+$")
# A stem, or windows, mixes the pixels of patches: they cannot be hidden.
MIXED = [n for n in AFFORDABLE if n.startswith(("resnet", "swin", "tost_")) and "vit" not in n]


def views_of(name: str, side: int) -> Any:
    """The views of an objective's tiny config, of which the largest has so many pixels a side."""
    views = CONFIGS[name].views
    largest = max(view.size for view in views.plan().views)
    sizes = {f.name: getattr(views, f.name) for f in fields(views) if f.name.endswith("size")}
    return replace(views, **{key: size * side // largest for key, size in sizes.items()})


def hides_patches(name: str) -> bool:
    """Returns whether an objective works only where patches can be hidden."""
    return hasattr(CONFIGS[name], "mask_ratio")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_row_has_a_test_file_with_its_tiny_config(name: str) -> None:
    assert type(CONFIGS[name]) is OBJECTIVES[name].load()[1]


def smallest() -> list[str]:
    """Returns one backbone of each architecture: the others differ from it in sizes only."""
    found: dict[str, str] = {}
    for name in sorted(AFFORDABLE, key=lambda name: BACKBONES[name].options().get("width", 0)):
        found.setdefault(SIZES.sub("", name), name)
    return list(found.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs over one backbone of each architecture, with --slow over every size of it."""
    if "backbone" in metafunc.fixturenames:
        slow = metafunc.config.getoption("--slow")
        metafunc.parametrize("backbone", AFFORDABLE if slow else smallest())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trains_two_steps_packed(name: str, backbone: str) -> None:
    config = replace(CONFIGS[name], views=views_of(name, 32))
    if hides_patches(name) and backbone in MIXED:
        with pytest.raises(ValueError, match=f"'{name}'.*'{backbone}'"):
            build(config, make_backbone(backbone, img_size=32, depth=1))
        return
    objective = build(config, make_backbone(backbone, img_size=32, depth=1))
    groups = objective.param_groups()
    trained = [p for g in groups for p in g["params"]]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW([{"params": g["params"]} for g in groups], lr=1e-3)
    for step in range(2):
        out = objective(make_batch(objective.views(), 4, step), step)
        optimizer.zero_grad()
        out["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        optimizer.step()
        objective.after_step({k: v.detach() for k, v in out.items()}, step)
        assert out["loss"].isfinite()
        assert out["loss"].shape == ()
    changed = [not torch.equal(p, b) for p, b in zip(trained, before, strict=True)]
    # ResNets begin with zeros in the last norm of every layer, which hides the layer's others.
    assert sum(changed) > 0.8 * len(changed)
    encoder = objective.encoder.eval()
    assert encoder(torch.zeros(1, 3, 32, 32)).pooled.shape == (1, encoder.embed_dim)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parameters_are_grouped_once_and_only_matrices_decay(name: str) -> None:
    objective = build(CONFIGS[name])
    groups = objective.param_groups()
    grouped = [id(p) for g in groups for p in g["params"]]
    trainable = {id(p): n for n, p in objective.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    assert not any("teacher" in n for n in trainable.values())
    for group in groups:
        for p in group["params"]:
            bare = p.ndim <= 1 or trainable[id(p)].endswith(".bias")
            assert group.get("wd_scale", 1.0) == (0.0 if bare else 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_autocast_is_close_and_finite(name: str) -> None:
    objective = build(CONFIGS[name])
    batch = make_batch(objective.views(), 8)
    exact = objective(batch, 0)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch, 0)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), exact, rel_tol=0.02, abs_tol=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_seeds_build_equal_networks_and_the_encoder_starts_as_the_backbone(name: str) -> None:
    first, second = build(CONFIGS[name]), build(CONFIGS[name])
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    bare = make_backbone()(0.0).state_dict()
    given = {"pos_embed"} if getattr(CONFIGS[name], "fixed_positions", False) else set()
    for key, value in first.encoder.state_dict().items():
        if key not in given:
            assert torch.equal(value, bare[key])


@pytest.mark.parametrize("case", variants())
def test_it_goes_on_from_its_state_to_the_bit(case: str) -> None:
    """No checkpoint would hold what it kept outside of its parameters and buffers."""
    first, second = (build(variants()[case]) for _ in range(2))
    take_step(first, 0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(take_step(first, 1), take_step(second, 1))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def take_step(objective: Objective, step: int) -> torch.Tensor:
    """Takes a step of gradient descent, and returns the loss before it."""
    out = objective(make_batch(objective.views(), 8, step), step)
    out["loss"].backward()
    with torch.no_grad():
        for p in objective.parameters():
            if p.grad is not None:
                p.sub_(0.1 * p.grad)
                p.grad = None
    objective.after_step({k: v.detach() for k, v in out.items()}, step)
    return out["loss"].detach()


def test_one_global_sample_trains_dino() -> None:
    objective = build(CONFIGS["dino"])
    assert objective(make_batch(objective.views(), 1), 0)["loss"].isfinite()
    assert objective.min_batch_size == 1


def test_without_local_views() -> None:
    for name in ("dino", "simdino"):
        objective = build(replace(CONFIGS[name], views=MultiCrop(global_size=16, n_local=0)))
        assert objective(make_batch(objective.views(), 4), 0)["loss"].isfinite()


def test_local_views_as_large_as_global_ones() -> None:
    for name in ("dino", "simdino"):
        crops = MultiCrop(global_size=16, local_size=16, n_local=2)
        objective = build(replace(CONFIGS[name], views=crops, drop_path=0.0))
        batch = make_batch(objective.views(), 4)
        assert len(batch.views) == 1
        out = objective(batch, 0)
        assert out["loss"].isfinite()
        assert out["features"].shape == (8, 32)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'simdno'.*'simdino'"):
        OBJECTIVES.find("simdno")
    with pytest.raises(ValueError, match=f"there are: {', '.join(sorted(OBJECTIVES))}"):
        OBJECTIVES.find("zzz")
    assert OBJECTIVES.find("dino").load()[1] is type(CONFIGS["dino"])


def test_a_config_knows_its_name() -> None:
    assert [objective_name(c) for c in CONFIGS.values()] == list(CONFIGS)
    with pytest.raises(ValueError, match="int is not an objective's config"):
        objective_name(3)


def test_labels_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="'supervised' needs labels"):
        build_objective(CONFIGS["supervised"], make_backbone(), HORIZON, None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_views_that_patches_do_not_tile_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"18 px.*patches of 4 px.*16 or 20"):
        build(replace(CONFIGS[name], views=views_of(name, 18)))


def test_a_normalisation_for_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 channels and the backbone takes 1"):
        build_objective(simdino.Config(), make_backbone(in_chans=1), HORIZON)


def test_grey_images_train() -> None:
    crops = MultiCrop(16, 8, 2, saturation=0, hue=0, grey=0, mean=(0.5,), std=(0.5,))
    objective = build(replace(CONFIGS["simdino"], views=crops), make_backbone(in_chans=1))
    assert objective(make_batch(objective.views(), 4), 0)["loss"].isfinite()
    assert isinstance(objective, nn.Module)
