"""Continued pretraining: starts from weights, warms the head up, guards what was known."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.train.runs import STEPS, assert_equal_bits, final_state, tiny_recipe
from vitrail import api
from vitrail.backbones.create import create_backbone
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.ranks import Ranks
from vitrail.encoder import Encoder
from vitrail.nn.schedules import Horizon
from vitrail.recipes.recipe import Recipe
from vitrail.train import checkpoint
from vitrail.train.build import assemble
from vitrail.train.warm_start import head_warmup_steps, resolve_start

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that no recipe names: other sizes, registers, positions of a larger image."""
    sizes = {"width": 32, "depth": 2, "registers": 2, "layer_scale": 0.5}
    backbone = create_backbone("vit_nano_patch4_32", in_chans=1, seed=7, **sizes)
    info = {"data": "digits:scattered", "step": 3}
    encoder = Encoder(backbone, Preprocess(16, 16, (0.5,), (0.5,)), info)
    return encoder.save(tmp_path_factory.mktemp("start"))


def continued(weights: Path, **changes: Any) -> Recipe:
    return tiny_recipe("dino", init_from=str(weights), **changes)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def student_of(run: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load_latest(run / "checkpoints", torch.device("cpu"))
    assert state is not None
    prefix = "student.backbone."
    objective = state["objective"].items()
    return {k.removeprefix(prefix): v for k, v in objective if k.startswith(prefix)}


def test_the_run_starts_from_the_weights_and_their_architecture(weights: Path) -> None:
    recipe = resolve_start(continued(weights))
    assert (recipe.backbone, recipe.img_size, recipe.patch_size) == ("vit_nano_patch4_32", 32, 4)
    assert set(recipe.backbone_options) == {
        "width=32",
        "depth=2",
        "registers=2",
        "layer_scale=0.5",
    }
    parts = assemble(recipe, ALONE)
    before = load_file(weights)
    for network in (parts.objective.student, parts.objective.teacher):
        state = network.backbone.state_dict()
        assert state.keys() == before.keys()
        assert all(torch.equal(state[key], before[key]) for key in before)


def test_the_encoder_is_frozen_while_the_head_warms_up(weights: Path, tmp_path: Path) -> None:
    before = load_file(weights)
    for warmup, moves in ((4, False), (2, True)):
        recipe = continued(weights, steps=4, head_warmup_steps=warmup)
        student = student_of(api.start(recipe, tmp_path / f"{warmup}"))
        moved = [not torch.equal(student[key], before[key]) for key in before]
        assert sum(moved) > 0.9 * len(moved) if moves else not any(moved)


def test_a_frozen_encoder_keeps_its_batch_statistics_too(tmp_path: Path) -> None:
    backbone = create_backbone("tost_nano_patch4_32", in_chans=1, depth=1)
    info = {"data": "digits:scattered"}
    path = Encoder(backbone, Preprocess(16, 16, (0.5,), (0.5,)), info).save(tmp_path / "start")
    before = load_file(path)
    for warmup, moves in ((3, False), (1, True)):
        recipe = continued(path, steps=3, head_warmup_steps=warmup, guard_drop=None)
        student = student_of(api.start(recipe, tmp_path / f"{warmup}"))
        for key in (key for key in before if "running" in key):
            assert torch.equal(student[key], before[key]) is not moves, key


def test_options_of_another_backbone_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone_options are registers=4, but init_from has"):
        api.start(continued(weights, backbone_options=["registers=4"]), tmp_path / "run")


def test_the_head_learns_meanwhile(weights: Path) -> None:
    parts = assemble(resolve_start(continued(weights, steps=4, head_warmup_steps=4)), ALONE)
    groups = parts.optimizer.param_groups
    names = {id(p): name for name, p in parts.objective.named_parameters()}
    until = {names[id(p)]: g.get("freeze_steps", 0) for g in groups for p in g["params"]}
    trainable = {name for name, p in parts.objective.named_parameters() if p.requires_grad}
    assert until.keys() == trainable
    assert {steps for name, steps in until.items() if "backbone" in name} == {4}
    assert {steps for name, steps in until.items() if "head.mlp" in name} == {0}


def test_the_warm_up_is_an_epoch_or_a_tenth_of_a_short_run(weights: Path) -> None:
    recipe = continued(weights)
    assert head_warmup_steps(recipe, Horizon(steps=1000, steps_per_epoch=30)) == 30
    assert head_warmup_steps(recipe, Horizon(steps=100, steps_per_epoch=30)) == 10
    assert head_warmup_steps(tiny_recipe("dino"), Horizon(steps=100, steps_per_epoch=30)) == 0


def test_the_guard_warns_with_the_numbers_and_the_run_goes_on(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ruinous = {"lr": 5.0, "lr_per_256": False, "warmup_epochs": 0.0, "clip": 0.0}
    objective = {"momentum_teacher": 0.5, "views": {"global_size": 16, "n_local": 0}}
    changes = {"optim": ruinous, "objective": objective, "head_warmup_steps": 0, "guard_every": 4}
    run = api.start(continued(weights, data="digits", **changes), tmp_path / "run")
    known = json.loads((run / "guard.json").read_text())
    rows = rows_of(run)
    assert len(rows) == STEPS
    looked = {row["step"]: row for row in rows if "knn" in row}
    assert set(looked) == {3, 7, 11}
    assert known["knn"] > 0.4
    assert known["held_out"] >= 100
    last = looked[11]
    assert last["knn"] < known["knn"] - 0.05
    assert f"{last['knn']:.1%}" in last["warning"]
    assert f"{known['knn']:.1%}" in last["warning"]
    assert "--head-warmup-steps" in " ".join(capfd.readouterr().err.split())


def test_the_guard_is_silent_where_nothing_is_forgotten(weights: Path, tmp_path: Path) -> None:
    changes = {"steps": 4, "head_warmup_steps": 4, "guard_every": 2}
    run = api.start(continued(weights, **changes), tmp_path / "run")
    known = json.loads((run / "guard.json").read_text())["knn"]
    rows = rows_of(run)
    assert [row.get("knn") for row in rows] == [None, known, None, known]
    assert not any("before the first step" in row.get("warning", "") for row in rows)


def test_what_the_guard_holds_out_is_not_trained_on(weights: Path) -> None:
    parts = assemble(resolve_start(continued(weights)), ALONE)
    assert parts.guard is not None
    source, images = parts.feed.source, parts.guard.images
    trained = {source.id(i) for i in range(len(source))}
    queries = {images.queries.id(i) for i in range(len(images.queries))}
    bank = {images.bank.id(i) for i in range(len(images.bank))}
    assert queries
    assert not queries & trained
    assert bank <= trained
    unguarded = assemble(resolve_start(continued(weights, guard_drop=None)), ALONE)
    assert unguarded.guard is None
    assert unguarded.feed.n_samples == len(trained) + len(queries)


def test_without_labels_there_is_no_guard_and_it_is_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for i in range(4):
        image = random.integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    recipe = continued(weights, data=f"folder:{tmp_path}", batch_size=2, channels=1)
    assert assemble(resolve_start(recipe), ALONE).guard is None
    assert "no labels" in capsys.readouterr().err


def test_killed_and_resumed_it_is_the_same_run_even_if_the_weights_are_gone(
    weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(weights.parent, tmp_path / "start")
    start = tmp_path / "start" / weights.name
    changes = {"guard_every": 4, "head_warmup_steps": 11}
    whole = api.start(continued(start, **changes), tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in sorted((cut / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    shutil.rmtree(tmp_path / "start")
    (cut / "encoder.safetensors").unlink()
    api.resume(cut)
    assert_equal_bits(final_state(whole), final_state(cut))
    ours, theirs = ([r.get("knn") for r in rows_of(run)] for run in (whole, cut))
    assert ours == theirs
    for folder in (cut / "checkpoints").iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    with pytest.raises(
        ValueError, match=r"no checkpoint yet.*weights that it starts from are gone"
    ):
        api.resume(cut)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, r"patch_size is 8, but the encoder in .* was built for 4"),
        ({"img_size": 16}, r"img_size is 16, but the encoder in .* was built for 32"),
        ({"head_warmup_steps": -1}, "head_warmup_steps is -1"),
        ({"guard_drop": 1.5}, "guard_drop is 1.5"),
    ],
)
def test_what_does_not_fit_is_named(
    weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        api.start(continued(weights, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_number_of_channels_is_named(tmp_path: Path) -> None:
    backbone = create_backbone("vit_nano_patch4_32", in_chans=3, width=32, depth=1)
    encoder = Encoder(backbone, Preprocess(16, 16, (0.5,) * 3, (0.5,) * 3), {})
    path = encoder.save(tmp_path / "start")
    with pytest.raises(ValueError, match=r"takes 3 channel\(s\) and the images have 1"):
        api.start(continued(path), tmp_path / "run")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        api.start(continued(tmp_path / "nowhere.pth"), tmp_path / "run")
