"""The commands on the page: a shell and the command line take them as they are meant."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.reporting.pages import make_run
from vitrail import cli
from vitrail.evals import evaluate as evaluation
from vitrail.evals.settings import make_settings, to_json
from vitrail.reporting.commands import evaluate_again, quoted, report_again, train_again
from vitrail.reporting.run_files import RunFiles

ODD = [
    "a b",
    "it's",
    "$(touch x)",
    "-e",
    "two\nlines",
    "esc\x1b]0;x\x07",
    "raw\udcff",
    "é",
    "\\n'\n",
]


@pytest.fixture
def calls(monkeypatch):
    """Writes what `vitrail evaluate` would have written."""
    calls = []
    monkeypatch.setattr(evaluation, "evaluate", lambda path, **asked: calls.append((path, asked)))
    return calls


def files_of(settings=None, **evaluation):
    known = {"data": "digits", "settings": to_json(make_settings(settings))} | evaluation
    return RunFiles("my run", description={"data": "digits"}, evaluation=known)


@pytest.mark.parametrize("name", ODD)
def test_a_shell_gives_the_name_back(name):
    word = quoted(name)
    assert word.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert said.stdout == name.encode("utf-8", "surrogateescape")


def test_the_settings_arrive(calls):
    settings = {
        "metric": "mean_per_class",
        "seed": 7,
        "knn": {"k": 5, "more_k": (10, 200)},
        "linear": {"draws": 3},
        "linear_sweep": {"last_blocks": 2},
        "finetune": {"epochs": 3.0, "crop": (0.2, 0.9)},
        "zeroshot": {"templates": ("a photo of {}", "{}")},
        "maskcut": {"tau": 0.3},
    }
    command = evaluate_again(files_of(settings), ["knn", "finetune"])
    cli.main(shlex.split(command)[1:])
    [(path, asked)] = calls
    assert path == Path("my run")
    assert asked["protocols"] == ("knn", "finetune")
    assert to_json(asked["settings"]) == to_json(make_settings(settings))
    assert asked["data"] == ()


def test_usual_settings_and_the_runs_own_data_are_not_said():
    assert evaluate_again(files_of(), ["saliency"]) == (
        "vitrail evaluate 'my run' --protocols saliency"
    )


def test_other_data_are_named_and_several(calls):
    for sources, expected in (((), ("folder:/my data",)), (("a", "b"), ("a", "b"))):
        command = evaluate_again(files_of(data="folder:/my data"), ["knn"], sources)
        cli.main(shlex.split(command)[1:])
        assert calls[-1][1]["data"] == expected


def test_other_peoples_weights_are_named_not_their_folder(calls):
    files = RunFiles("x.pth.evaluation", evaluation={"weights": "x.pth", "data": "digits"})
    assert evaluate_again(files, ["knn"]) == (
        "vitrail evaluate x.pth --data digits --protocols knn"
    )
    files.label = "other"
    cli.main(shlex.split(evaluate_again(files, ["knn"]))[1:])
    assert calls[-1][1]["out"] == Path("other")


@pytest.mark.parametrize("settings", [3, None, {"knn": {"k": [1]}, "finetune": [1], "new": {}}])
def test_damaged_settings_do_no_harm(settings):
    again = evaluate_again(files_of() if settings is None else files_of_raw(settings), ["knn"])
    assert again.startswith("vitrail evaluate 'my run' --protocols knn")


def files_of_raw(settings):
    return RunFiles("my run", description={"data": "d"}, evaluation={"settings": settings})


def test_a_name_is_never_a_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunFiles("-a"), RunFiles("b")]
    command = report_again(runs, "-cmp.html")
    assert command == "vitrail report ./-a b --out ./-cmp.html"
    for files in runs:
        make_run(tmp_path / files.name)
    cli.main(shlex.split(command)[1:])
    assert (tmp_path / "-cmp.html").exists()


def test_training_again_is_what_config_says():
    assert train_again(RunFiles("a", config={"command": "x"})) == "x"
    assert train_again(RunFiles("a", config={"command": 3})) is None
