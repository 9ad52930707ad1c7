"""Recipes to JSON and back, and what is said of fields that do not fit."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.config import differences, from_dict, override, to_dict
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop
from vitrail.objectives import dino, simdino, supervised
from vitrail.optim import Config as Optim
from vitrail.recipes.named import get_recipe
from vitrail.recipes.recipe import Recipe
from vitrail.train.checkpoint import require_same

# beartype looks at random items of a tuple, also of those that a strategy builds.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

share = st.floats(0, 1)
positive = st.floats(1e-6, 1e6)
count = st.integers(1, 10**6)
ordered = st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1))
channels = st.lists(positive, min_size=1, max_size=6).map(tuple)
crops = st.builds(
    MultiCrop,
    global_size=count,
    n_local=st.integers(0, 20),
    global_scale=ordered,
    flip=share,
    blur=st.tuples(share, share, share),
    mean=channels,
    std=channels,
)
objectives = st.one_of(
    st.builds(dino.Config, views=crops, out_dim=st.integers(2, 65536)),
    st.builds(
        simdino.Config,
        views=crops,
        eps=positive,
        gamma=st.none() | share,
        expand=st.sampled_from(["student", "mean"]),
        momentum_teacher=share,
    ),
    st.builds(
        supervised.Config,
        views=st.builds(RandomResizedCrop, size=count, scale=ordered),
        label_smoothing=st.floats(0, 0.99),
    ),
)
optims = st.builds(
    Optim,
    name=st.sampled_from(["adamw", "lion"]),
    lr=positive,
    lr_per_256=st.booleans(),
    weight_decay_end=st.none() | share,
    betas=st.tuples(share, share),
)
recipes = st.builds(
    Recipe,
    name=st.text(),
    objective=objectives,
    backbone=st.text(),
    data=st.text(),
    batch_size=count,
    epochs=positive,
    steps=st.none() | count,
    channels=st.none() | count,
    optim=optims,
    precision=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 2**63 - 1),
    workers=st.none() | st.integers(0, 64),
    max_bad_fraction=share,
)


@settings(deadline=None)
@given(recipes)
def test_json_and_back_is_the_same_recipe(recipe):
    plain = to_dict(recipe)
    assert json.loads(json.dumps(plain)) == plain
    assert from_dict(Recipe, plain) == recipe


@settings(deadline=None)
@given(recipes, recipes)
def test_two_recipes_differ_where_their_fields_do(a, b):
    assert (differences(to_dict(a), to_dict(b)) == []) == (a == b)
    changed = replace(a, batch_size=a.batch_size + 1)
    assert differences(to_dict(a), to_dict(changed)) == [
        f"batch_size: {a.batch_size} -> {a.batch_size + 1}"
    ]


def test_an_override_changes_what_it_names_and_no_more():
    recipe = get_recipe("simdino_digits")
    changed = override(recipe, {"optim": {"lr": 1}, "objective": {"views": {"blur": [1, 0, 0.5]}}})
    assert changed.optim == replace(recipe.optim, lr=1.0)
    assert changed.objective.views == replace(recipe.objective.views, blur=(1.0, 0.0, 0.5))
    lines = differences(to_dict(recipe), to_dict(changed))
    assert [line.split(":")[0] for line in lines] == ["objective.views.blur", "optim.lr"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batchsize": 3}, "batchsize is not a field; did you mean 'batch_size'"),
        ({"zzz": 3}, "zzz is not a field; there are: accumulate, backbone"),
        ({"optim": {"learning": 3}}, r"optim\.learning is not a field"),
        ({"optim": {"weight_decai": 3}}, r"optim\.weight_decai.*did you mean 'weight_decay'"),
        ({"objective": {"views": {"globalsize": 3}}}, r"views\.globalsize.*'global_size'"),
        ({"objective": {"kind": "simdini"}}, r"objective\.kind is 'simdini'.*'simdino'"),
        ({"batch_size": "3"}, "batch_size is '3'; it must be int"),
        ({"batch_size": 3.5}, r"batch_size is 3\.5; it must be int"),
        ({"batch_size": None}, "batch_size is None; it must be int"),
        ({"steps": True}, "steps is True; it must be int"),
        ({"data": 3}, "data is 3; it must be str"),
        ({"optim": 3}, "optim is 3"),
        ({"optim": {"lr_per_256": 1}}, r"optim\.lr_per_256 is 1; it must be bool"),
        ({"optim": {"name": "adam"}}, r"optim\.name is 'adam'; did you mean 'adamw'"),
        ({"optim": {"betas": [0.9, 0.9, 0.9]}}, r"optim\.betas is \[0\.9"),
        ({"optim": {"lr": -1}}, r"optim\.lr is -1\.0; it must be 0 or more"),
        ({"optim": {"warmup_epochs": float("inf")}}, r"optim\.warmup_epochs is inf"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"health_every": 0}, "health_every is 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"eval_crop": 0}, r"eval_crop is 0\.0"),
        ({"max_bad_fraction": 2}, r"max_bad_fraction is 2\.0"),
    ],
)
def test_a_change_that_does_not_fit(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        override(get_recipe("simdino_digits"), changes)


def test_what_a_config_lacks_is_named():
    plain = to_dict(get_recipe("simdino_digits"))
    del plain["data"], plain["epochs"]
    with pytest.raises(ValueError, match="the configuration lacks data, epochs"):
        from_dict(Recipe, plain)


def test_a_run_from_before_a_field_came_goes_on(tmp_path):
    recipe = get_recipe("mae_digits")
    saved = to_dict(recipe)
    del saved["objective"]["views"]["blur"], saved["guard_every"]
    assert from_dict(Recipe, saved) == recipe
    require_same(tmp_path, saved, recipe)
    saved["objective"]["views"]["flip"] = 0.5
    with pytest.raises(ValueError, match=r"edited .* \(objective\.views\.flip: 0\.5 -> 0\.0\)"):
        require_same(tmp_path, saved, recipe)


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(ValueError, match=r"'crate_tiny_in1' is not a recipe.*'crate_tiny_in1k'"):
        get_recipe("crate_tiny_in1")
