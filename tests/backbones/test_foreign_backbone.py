"""A backbone of another package: created by name, trained by a recipe, saved and loaded."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitrail
from tests.train.runs import tiny_recipe
from vitrail import api
from vitrail.backbones.contract import Backbone, Features, LayerState
from vitrail.backbones.create import create_backbone, loadable_rows
from vitrail.backbones.families import CONV, INIT_VIT, MLP, BackboneRow, Family, Skeleton
from vitrail.backbones.operators.attention import MHSA
from vitrail.backbones.registry import BACKBONES
from vitrail.encoder import Encoder
from vitrail.registry import register


class Mean(Backbone):
    """One convolution, and the mean of its cells."""

    def __init__(self, in_chans: int, width: int, config: dict[str, Any]):
        super().__init__()
        self.embed_dim, self.in_chans, self.img_size = width, in_chans, config["img_size"]
        self.config = config
        self.conv = nn.Conv2d(in_chans, width, kernel_size=4, stride=4)

    def forward_packed(self, images: list[Tensor], draws: object = None) -> list[Features]:
        maps = [self.conv(batch).permute(0, 2, 3, 1) for batch in images]
        return [Features(pooled=cells.mean((1, 2)), patches=cells) for cells in maps]

    def layer_states(self, images: Tensor) -> list[LayerState]:
        return [LayerState("conv", None, self.conv(images).flatten(2).mT, None)]


@dataclass(frozen=True)
class MeanRow(BackboneRow):
    width: int = 8

    def options(self) -> dict[str, Any]:
        return {"width": self.width}

    def build(
        self,
        name: str,
        *,
        img_size: int | None,
        in_chans: int,
        drop_path: float,
        overrides: dict[str, Any],
    ) -> nn.Module:
        size = self.img_size if img_size is None else img_size
        config = {"name": name, "img_size": size, "in_chans": in_chans, **overrides}
        return Mean(in_chans, (self.options() | overrides)["width"], config)

    @property
    def summary(self) -> str:
        return f"width {self.width}"


class NoBackboneRow(MeanRow):
    def build(self, name: str, **arguments: Any) -> nn.Module:
        return nn.Linear(2, 2)


class HalfMHSA(MHSA):
    """An operator of another package."""


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_registered", {})
    register("backbone", "foreign_mean", MeanRow(32))
    register("backbone", "foreign_linear", NoBackboneRow(32))
    family = Family(HalfMHSA, MLP, CONV, INIT_VIT)
    register("backbone", "foreign_family", Skeleton(32, family, 16, 2, 2, 8))


def test_it_is_created_by_name_with_options() -> None:
    backbone = create_backbone("foreign_mean", width=4, in_chans=1)
    assert backbone(torch.zeros(2, 1, 8, 8)).pooled.shape == (2, 4)
    again = create_backbone(**backbone.config)
    assert torch.equal(again.conv.weight, backbone.conv.weight)
    assert BACKBONES.package("foreign_mean") == "this process"
    with pytest.raises(ValueError, match=r"foreign_mean: unknown override 'widht'; did you mean"):
        create_backbone("foreign_mean", widht=4)
    with pytest.raises(ValueError, match=r"'foreign_maen'; did you mean 'foreign_mean'"):
        create_backbone("foreign_maen")


def test_a_package_that_cannot_be_imported_spoils_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = EntryPoint("broken", "there_is_no_such_module:ROW", BACKBONES.group)
    monkeypatch.setitem(BACKBONES.__dict__, "_entry_points", {"broken": broken})
    assert set(loadable_rows()) == {*BACKBONES.own, *BACKBONES._registered}
    with pytest.raises(ValueError, match="'broken' of the package there_is_no_such_module cannot"):
        create_backbone("broken")


def test_an_operator_of_another_package_fits_into_the_skeleton() -> None:
    backbone = create_backbone("foreign_family", depth=1)
    assert isinstance(backbone.blocks[0].attn, HalfMHSA)
    assert BACKBONES["foreign_family"].summary.startswith("width 16, 2 layers of HalfMHSA × MLP")


def test_a_row_that_builds_no_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"foreign_linear of this process: its row builds a Linea"):
        create_backbone("foreign_linear")


def test_a_recipe_trains_it_and_its_encoder_loads(tmp_path: Path) -> None:
    recipe = tiny_recipe("simdino", steps=2, backbone="foreign_mean")
    api.start(recipe, tmp_path / "run")
    encoder = vitrail.load(tmp_path / "run")
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder.backbone, Mean)
    encoder.save(tmp_path / "again")
    loaded = vitrail.load(tmp_path / "again").backbone.state_dict()
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(loaded[key], value)
