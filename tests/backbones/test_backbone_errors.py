"""Errors of users about backbones, and the messages for them."""

import math

import pytest
import torch

from vitrail.backbones.create import _check, create_backbone, parse_options
from vitrail.backbones.registry import BACKBONES
from vitrail.config import MOST_NAMES


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"'vit_smal_patch16_224'.*'vit_small_patch16_224'"):
        create_backbone("vit_smal_patch16_224")


def test_a_hopeless_name_gets_the_list() -> None:
    more = len(BACKBONES) - MOST_NAMES
    with pytest.raises(ValueError, match=rf"{min(BACKBONES)}, .* and {more} more$"):
        create_backbone("???")


def test_an_unknown_override_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"patchsize.*patch_size"):
        create_backbone("vit_nano_patch4_32", patchsize=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 30}, r"patch size 4 .* 30; use a size of 28 or 32, or patch_size=3"),
        ({"patch_size": 7}, r"patch size 7 .* 32; use a size of 28 or 35, or patch_size=8"),
        ({"patch_size": 64}, r"patch size 64 .* 32; use a size of 64, or patch_size=32"),
        ({"heads": 5}, r"width 64 .* heads 5"),
        ({"drop_path": 1.0}, r"drop_path is 1.0"),
        ({"in_chans": 0}, r"in_chans is 0"),
        ({"depth": 0}, r"depth is 0"),
        ({"img_size": -4}, r"img_size is -4"),
        ({"patch_size": 0}, r"patch_size is 0"),
        ({"patch_size": 4.0}, r"patch_size is 4.0; give a value like the row's 4"),
        ({"layer_scale": math.nan}, r"layer_scale is nan"),
        ({"residual": 1}, r"residual is 1; give a value like the row's True"),
        ({"registers": -1}, r"registers is -1"),
        ({"ratio": 0}, r"ratio is 0"),
    ],
)
def test_values_that_do_not_fit_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("vit_nano_patch4_32", **arguments)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "crate_nano_patch4_32"])
def test_views_that_do_not_fit_are_named(name: str) -> None:
    backbone = create_backbone(name)
    with pytest.raises(ValueError, match=r"patch size 4 .* view size 30; use a size of 28 or 32"):
        backbone.forward_packed([torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 30, 30)])
    with pytest.raises(ValueError, match=r"built for 3 .* have 1; .*in_chans=1"):
        backbone(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="channel"):
        backbone.token_maps(torch.zeros(1, 4, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": (28, 28)}, r"img_size is \(28, 28\), but must be a whole number"),
        ({"in_chans": "3"}, r"in_chans is '3', but must be a whole number"),
        ({"drop_path": "a"}, "drop_path is a"),
        ({"seed": 2**70}, "seed is"),
    ],
)
def test_values_of_another_type_are_named(arguments: dict, message: str) -> None:
    # Straight to the check: the tests' type checker would stop them before it.
    sizes = {"img_size": None, "in_chans": 3, "drop_path": 0.0, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        _check.__wrapped__(
            "vit_nano_patch4_32", BACKBONES["vit_nano_patch4_32"], overrides={}, **sizes
        )


@pytest.mark.parametrize("text", ["registers", "registers=", "registers=many"])
def test_options_that_are_no_options_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"option '{text}' is not NAME=VALUE"):
        parse_options("vit_nano_patch4_32", [text])


def test_options_are_numbers_flags_and_none() -> None:
    texts = ["registers=4", "residual=False", "layer_scale=None", "eta=1e-2"]
    expected = {"registers": 4, "residual": False, "layer_scale": None, "eta": 0.01}
    assert parse_options("vit_nano_patch4_32", texts) == expected


def test_what_has_no_none_refuses_it() -> None:
    with pytest.raises(ValueError, match="eta is None"):
        create_backbone("crate_nano_patch4_32", eta=None)
