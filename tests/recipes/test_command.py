"""The report's command starts the very run again."""

import shlex

from vitrail import api, cli
from vitrail.config import override
from vitrail.recipes.named import command_of, get_recipe


def test_the_command_gives_the_recipe_back(monkeypatch):
    changes = {
        "data": "folder:my photos",
        "seed": 3,
        "steps": 7,
        "optim": {"lr": 1e-5, "lr_per_256": True, "weight_decay_end": None},
        "objective": {"views": {"global_scale": [0.25, 0.5]}, "expand": "student"},
    }
    recipe = override(get_recipe("simdino_digits"), changes)
    words = shlex.split(command_of(recipe))
    assert words[:3] == ["vitrail", "pretrain", "simdino_digits"]
    started = []
    monkeypatch.setattr(api, "start", lambda recipe, out, *_: started.append(recipe))
    cli.main(words[1:])
    assert started == [recipe]


def test_what_no_command_says_has_none():
    recipe = get_recipe("simdino_digits")
    assert command_of(override(recipe, {"name": "mine"})) is None
    objective = get_recipe("dino_vits_fashion").objective
    assert command_of(override(recipe, {"objective": objective})) is None
