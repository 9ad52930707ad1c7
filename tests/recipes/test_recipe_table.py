"""Every recipe of the table: whole as written, and two real steps of it made tiny."""

import gzip
import json
import math
import struct
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from tests.objectives.tiny import CONFIGS
from vitrail import api
from vitrail.backbones.create import count_parameters
from vitrail.backbones.registry import BACKBONES
from vitrail.config import from_dict, override, to_dict
from vitrail.objectives import clip, deepcluster, swav
from vitrail.objectives.registry import objective_name
from vitrail.recipes.named import get_recipe
from vitrail.recipes.recipe import Recipe, migrated, preprocess_of
from vitrail.recipes.registry import RECIPES
from vitrail.registry import resolve

NANO = {"vit": "vit_nano_patch4_32", "crate": "crate_nano_patch4_32"}
VIEWS = {"global_size": 16, "local_size": 8, "n_local": 2, "size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny data of each kind that recipes name."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    fashion = root / "fashion"
    fashion.mkdir()
    for split, count in (("train", 40), ("t10k", 20)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            with gzip.open(fashion / f"{split}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    for i, pixels in enumerate(random.integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)):
        path = root / "imagenet" / "train" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    rows = [f"imagenet/train/class{i % 3}/{i}.png,picture {i} of class {i % 3}" for i in range(12)]
    (root / "pairs.csv").write_text("\n".join(["path,caption", *rows]))
    return {
        "digits": "digits:scattered",
        "emoji": f"pairs:{root / 'pairs.csv'}",
        "pairs": f"pairs:{root / 'pairs.csv'}",
        "fashion-mnist": f"fashion-mnist:{fashion}",
        "folder": f"folder:{root / 'imagenet' / 'train'}",
    }


def known(config: object, changes: dict[str, int]) -> dict[str, int]:
    """The changes of fields that this configuration has, and has not at 0 (local views)."""
    names = {field.name for field in fields(config) if getattr(config, field.name) != 0}
    return {name: value for name, value in changes.items() if name in names}


def tiny_sizes(objective: object) -> dict[str, int]:
    """The widths, depths and counts that are set in the tiny config of a configuration's kind."""
    tiny = CONFIGS[objective_name(objective)]
    set_there = {field.name: getattr(tiny, field.name) for field in fields(tiny)}
    default = {field.name: field.default for field in fields(tiny)}
    return {k: v for k, v in set_there.items() if type(v) is int and v != default[k]}


def made_tiny(recipe: Recipe, data: dict[str, str]) -> Recipe:
    """Two steps on a nano backbone; what the recipe is about (objective, optimizer, precision,
    augmentation) stays."""
    changes = {
        "backbone": NANO[recipe.backbone.split("_")[0]],
        "data": data[recipe.data.partition(":")[0]],
        "batch_size": 8,
        "steps": 2,
        "device": "cpu",
        "workers": 0,
        "objective": {
            **known(recipe.objective, tiny_sizes(recipe.objective)),
            "views": known(recipe.objective.views, VIEWS),
        },
    }
    return override(recipe, changes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_together_as_written(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    plan = recipe.objective.views.plan()
    model = BACKBONES[recipe.backbone]
    assert all(view.size % (recipe.patch_size or model.patch_size) == 0 for view in plan.views)
    assert len(plan.mean) == (recipe.channels or 3)
    assert count_parameters(recipe.backbone) > 0
    assert RECIPES[name].summary
    assert resolve(RECIPES[name].make).__name__ == name


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_it_made_tiny(name, data, tmp_path):
    recipe = made_tiny(get_recipe(name), data)
    run = api.start(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    images = np.zeros((2, 28, 28, recipe.channels or 3), dtype=np.uint8)
    features = api.load(run).transform(images)
    assert features.shape == (2, 64)
    assert np.isfinite(features).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_config_json(name):
    recipe = get_recipe(name)
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert override(recipe, {}) == recipe


def test_the_recipes_that_reproduce_a_run_do_what_its_code_does():
    for name in ("dino_vitb16_in1k", "simdino_vitb16_in1k", "simdino_vitl16_in1k"):
        recipe = get_recipe(name)
        assert BACKBONES[recipe.backbone].options()["antialias"] is False, name
        assert BACKBONES[recipe.backbone].options()["position_offset"] == 0.1
        assert recipe.optim.warmup_peak == "last"
        assert recipe.optim.decay == "matrices"
        assert recipe.objective.views.interpolation == "bicubic"
    for name in ("tiny", "small", "small_book", "base", "large"):
        recipe = get_recipe(f"crate_{name}_in1k")
        plan = recipe.objective.views.plan()
        assert recipe.optim.decay == "all"
        assert plan.interpolation == preprocess_of(recipe, plan).interpolation == "bilinear"
    assert get_recipe("clip_vits16_pairs").optim.eps == 1e-6
    assert swav.Config().views.std == (0.228, 0.224, 0.225)
    for config in (swav.Config(), deepcluster.Config()):
        assert config.views.interpolation == "bilinear"


def test_recipes_with_measured_numbers_keep_the_settings_of_their_runs():
    for name in RECIPES:
        if name.endswith(("_digits", "_emoji", "_fashion", "_supervised")):
            plain = to_dict(get_recipe(name))
            assert plain["objective"]["views"]["interpolation"] == "bicubic", name
            assert plain["optim"]["warmup_peak"] == "after"
            assert plain["optim"]["decay"] == "matrices"
            assert plain["optim"]["eps"] == 1e-8
            assert plain["objective"].get("second_moment", "global") == "global"


def test_a_recipe_of_an_earlier_version_keeps_what_it_meant():
    plain = to_dict(get_recipe("clip_emoji"))
    for new in ("interpolation",):
        del plain["objective"]["views"][new]
    del plain["objective"]["same_image"]
    for new in ("warmup_peak", "decay", "eps"):
        del plain["optim"][new]
    recipe = from_dict(Recipe, migrated(plain))
    assert recipe.objective.same_image == "negatives"
    assert clip.Config().same_image == "left_out"
    assert recipe.optim == get_recipe("clip_emoji").optim
    plain = to_dict(get_recipe("clip_emoji"))
    assert from_dict(Recipe, migrated(plain)).objective.same_image == "left_out"
    for wrong in ("x", {"kind": ["clip"]}, {"kind": "clap"}, {}):  # refused later, by name
        assert migrated({"objective": wrong}) == {"objective": wrong}
