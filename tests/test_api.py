"""The Python functions take the arguments of the commands, and a run shows itself in a notebook."""

import inspect
import json
from importlib import import_module

import pytest

import vitrail
from vitrail import api
from vitrail.api import Run
from vitrail.cli.commands import COMMANDS
from vitrail.recipes.registry import RECIPES


@pytest.mark.parametrize("name", ["resume", "evaluate", "embed", "export", "report"])
def test_a_function_takes_the_arguments_of_its_command(name):
    command = COMMANDS[name]
    if command.__name__.startswith("make_"):
        command = command()
    options = inspect.signature(command).parameters
    arguments = inspect.signature(getattr(vitrail, name)).parameters
    assert list(arguments) == list(options)
    for option in options.values():
        default = arguments[option.name].default
        if option.kind is option.POSITIONAL_OR_KEYWORD and option.name not in (
            "more",
            "settings",
            "preparation",
        ):
            assert default == option.default, option.name


def test_the_package_offers_every_function():
    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None
    assert callable(vitrail.report)
    import_module("vitrail.reporting.build")  # a room must not take the place of the function

    assert vitrail.report is api.report
    assert set(dir(vitrail)) == set(vitrail.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vitrail.trian  # noqa: B018


def test_a_run_shows_what_it_has_written(tmp_path):
    run = Run(tmp_path / "<b>run")
    run.mkdir()
    assert "<td>" not in run._repr_html_()
    name = next(iter(RECIPES))
    (run / "config.json").write_text(json.dumps({"name": name, "data": "folder:<i>"}))
    rows = [{"step": 0, "loss": 2.5}, {"step": 1, "loss": 1.25}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 2, "lo')
    (run / "evaluation.json").write_text(json.dumps({"knn": {"raw": 0.5, "trained": 0.75}}))
    page = run._repr_html_()
    for text in (name, "folder:&lt;i&gt;", "&lt;b&gt;run", "<td>2</td>", "1.2500", "trained 75.0"):
        assert text in page
    assert "<b>" not in page
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": null}')
    assert "<td>4</td>" in run._repr_html_()
    assert isinstance(run / "config.json", Run)
