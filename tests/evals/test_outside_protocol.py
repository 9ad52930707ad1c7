"""A protocol of another package: one function, one config and one row, and nothing else."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from tests.evals.synthetic_runs import tiny_encoder
from tests.reporting.pages import Elements, words_of
from vitrail.cli import main
from vitrail.evals.evaluate import evaluate
from vitrail.evals.figures.grid import Cell, save_grid
from vitrail.evals.protocol import Figure, Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.registry import register
from vitrail.reporting.build import build_report


@dataclass(frozen=True)
class Brightness:
    """The settings of `brightness`.

    Attributes:
        scale: factor of all numbers, above 0.
    """

    scale: float = 1.0


CALLS = []


def brightness(context, config):
    """Gives a number for each kind of features, and draws a grey square."""
    CALLS.append(config)
    save_grid([[Cell(np.full((4, 4, 1), 0.5))]], context.figures / "brightness.png", side=40)
    return dict.fromkeys(context.test.features, config.scale * 0.25)


@pytest.fixture
def run(tmp_path):
    CALLS.clear()
    register(
        "protocol",
        "brightness",
        Protocol(
            run=brightness,
            title="Brightness",
            meaning="How bright images are.",
            explanation="All are alike, times {scale}.",
            needs=frozenset({"labels", "features"}),
            configs={"brightness": Brightness},
            figure=Figure(kind="a square", caption="Grey, whatever the images are."),
        ),
    )
    tiny_encoder("digits", size=8).save(tmp_path / "run")
    yield tmp_path / "run"
    del PROTOCOLS._registered["brightness"]


def test_it_is_run_by_default_written_reported_and_reused(run, capsys):
    found = evaluate(run, protocols=["brightness"], settings={"brightness": {"scale": 2.0}})
    assert found["brightness"] == {"raw": 0.5, "untrained": 0.5, "trained": 0.5}
    assert "50.0" in capsys.readouterr().out
    written = json.loads((run / "evaluation.json").read_text())
    assert written == found
    assert written["settings"]["brightness"] == {"scale": 2.0}
    assert written["figures"] == {"brightness": "figures/brightness.png"}
    page = build_report(run).read_text()
    text = words_of(page)
    assert "BrightnessAll are alike, times 2.0." in text  # <b> and <small>
    assert "--protocols brightness --brightness.scale 2.0" in text
    [image] = Elements(page).attributes("img")
    assert image["alt"] == "Brightness: a square. Grey, whatever the images are."
    again = evaluate(run, protocols=["pca"], settings={"brightness": {"scale": 2.0}}, quiet=True)
    assert again["brightness"] == found["brightness"]
    assert "brightness" not in evaluate(run, protocols=["pca"], quiet=True)  # of another scale
    assert [Brightness(2.0)] == CALLS


def test_its_options_are_on_the_command_line(run, capsys):
    words = ["--protocols", "brightness", "--brightness.scale", "3", "--device", "cpu"]
    main(["evaluate", str(run), *words, "--workers", "0"])
    assert [Brightness(3.0)] == CALLS
    main(["list", "protocols"])
    assert "How bright images are." in capsys.readouterr().out


def test_it_is_among_the_default_protocols(run):
    assert "brightness" in evaluate(run, quiet=True)
    assert [Brightness()] == CALLS
    html = evaluate(run, protocols=["brightness"], quiet=True)._repr_html_()
    assert "<td>brightness</td><td>25.0</td><td>25.0</td><td>25.0</td>" in html


def test_a_notebook_escapes_what_it_shows(run):
    found = evaluate(run, protocols=["brightness"], quiet=True)
    found["data"] = "folder:<script>"
    assert "folder:&lt;script&gt;" in found._repr_html_()
    assert "<script>" not in found._repr_html_()
    assert type(found.to_dict()) is dict
    assert found.to_dict() == found
