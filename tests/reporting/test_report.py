import base64
import itertools
import json
import re

import pytest

from tests.reporting.pages import PNG, Elements, require_self_contained, write_metrics
from vitrail.reporting.build import build_report
from vitrail.reporting.curves import MAX_POINTS, draw, short, training_curves
from vitrail.reporting.facts import visible
from vitrail.reporting.rows import percent

HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "\"onerror='alert(2)'.png",
    "two\nlines & co.png",
    "undecodable \udcff.png",
]
EVALUATION = {
    "knn": {"raw": 0.57, "untrained": 0.174, "trained": 0.9142},
    "linear_10_per_class": {
        kind: {"mean": mean, "std": 0.012}
        for kind, mean in (("raw", 0.2), ("untrained", 0.1), ("trained", 0.8))
    },
    "features": {"dimensions": 64, "effective_rank": 16.4, "effective_rank_untrained": 8.7},
    "data": "digits:scattered",
    "n_train": 1297,
    "n_test": 500,
    "settings": {"k": 20, "tau": 0.07, "draws": 10, "seed": 0},
    "hardware": "a machine",
}

COMMAND = "vitrail pretrain simdino_digits --data digits:scattered --seed 3 --out runs/again"


@pytest.fixture
def run(tmp_path):
    """A finished, evaluated run with hostile names."""
    (tmp_path / "figures").mkdir()
    config = {"name": "simdino_digits", "data": "digits:scattered", "seed": 3, "version": "0.1.0"}
    config["command"] = COMMAND
    config |= {"objective": {"kind": "simdino", "gamma": 1.0}, "backbone": "vit", "steps": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "encoder.json").write_text(json.dumps({"backbone": "vit", "step": 30, "steps": 30}))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    bad = [json.dumps({"id": name, "reason": f"<b>{name}</b>"}) for name in HOSTILE]
    (tmp_path / "quarantine.jsonl").write_text("\n".join(bad) + "\n")
    for name in ("neighbours", "saliency", "pca", "xray"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(PNG)
    write_metrics(tmp_path, warning="<script>alert(3)</script>")
    return tmp_path


def page_of(run):
    path = build_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_numbers_are_on_the_page(run):
    text = re.sub(r"\s+", " ", Elements(page_of(run)).text)
    for words in ("91.4", "57.0", "17.4", "80.0 ± 1.2", "16.4 of 64 dimensions (untrained: 8.7)"):
        assert words in text, words
    assert "16 × 16 canvas" in text
    assert COMMAND in text
    assert "objective.gamma" in text
    assert "a machine" in text


def test_it_is_self_contained_and_small(run):
    require_self_contained(page_of(run))


def test_hostile_names_are_text(run):
    page = page_of(run)
    parsed = Elements(page)
    assert "<script" not in page
    assert HOSTILE[0] in parsed.text
    assert HOSTILE[1] in parsed.text
    assert r"two\nlines & co.png" in parsed.text
    assert r"undecodable \udcff.png" in parsed.text
    assert "<b>undecodable" not in page
    assert "<script>alert(3)</script>" in parsed.text  # the warning, as text


def test_it_can_be_read_aloud(run):
    page = page_of(run)
    parsed = Elements(page)
    assert parsed.attributes("html") == [{"lang": "en"}]
    assert all(len(image["alt"]) > 20 for image in parsed.attributes("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.attributes("svg"))
    assert parsed.attributes("a")[0] == {"class": "skip", "href": "#content"}
    ids = {attributes["id"] for attributes in parsed.attributes("section")}
    assert {a["href"].removeprefix("#") for a in parsed.attributes("a")[1:]} == ids
    assert ":focus-visible" in page
    levels = [int(tag[1]) for tag, _ in parsed.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert "prefers-color-scheme: dark" in page


def test_figures_are_embedded_whole(run):
    images = Elements(page_of(run)).attributes("img")
    assert len(images) == 4
    assert all(base64.b64decode(i["src"].split(",", 1)[1]) == PNG for i in images)


def test_a_run_without_evaluation(run):
    for name in ("evaluation.json", "figures/neighbours.png", "figures/saliency.png"):
        (run / name).unlink()
    assert "not evaluated yet" in page_of(run)


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    text = Elements(page_of(tmp_path)).text
    assert "Nothing was logged yet" in text
    assert "every image could be read" in text


def test_an_unfinished_run_says_so(run):
    write_metrics(run, steps=12)
    assert "12 of 30 steps are taken" in page_of(run)
    (run / "encoder.json").unlink()
    (run / "config.json").write_text('{"epochs": 2.0}')
    assert "it has no encoder yet" in page_of(run)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_run_that_diverged_says_so(run, value):
    write_metrics(run, steps=8, loss=value, grad_norm=value)
    page = page_of(run)
    assert "stopped at step 7: its loss was no longer a finite number" in page
    assert "nan" not in "".join(re.findall("<svg.*?</svg>", page)).lower()


def test_a_last_line_that_was_cut_short_is_no_matter(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    assert "damaged" not in page_of(run)


def test_damaged_files_are_told_and_left_out(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], "{oops", *lines[3:], ""]))
    (run / "evaluation.json").write_text("{")
    text = Elements(page_of(run)).text
    assert "metrics.jsonl: 1 damaged lines are left out (first: 4)" in text
    assert "evaluation.json cannot be read" in text


def test_json_of_the_wrong_shape_does_no_harm(run):
    (run / "evaluation.json").write_text(
        '{"knn": {"raw": "x"}, "linear": 3, "features": [], "settings": 1, "data": ["a"]}'
    )
    (run / "metrics.jsonl").write_text('{"step": "a", "loss": [1], "health": 3}\n[1]\n')
    (run / "config.json").write_text('{"objective": "x", "optim": 3, "steps": "many", "commit": 1}')
    assert "How good it is" in page_of(run)


def test_a_long_list_of_bad_files_is_capped(run):
    lines = (json.dumps({"id": f"{i}.png", "reason": "empty"}) for i in range(500))
    (run / "quarantine.jsonl").write_text("\n".join(lines))
    page = page_of(run)
    assert "500 files could not be used" in page
    assert "99.png" in page
    assert "100.png" not in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no run folder"):
        build_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no run"):
        build_report(tmp_path)


def test_a_long_curve_is_drawn_with_few_points():
    svg = str(draw([(float(i), float(i % 7)) for i in range(100_000)], "saw"))
    line = re.search('class="line" points="([^"]*)"', svg)[1].split()
    assert len(line) <= MAX_POINTS
    assert len(svg) < 20_000


def test_the_curve_goes_through_its_points():
    svg = str(draw([(0.0, 0.0), (1.0, 1.0), (2.0, 0.5)], "a <b>"))
    points = re.search('class="line" points="([^"]*)"', svg)[1].split()
    xs, ys = zip(*(map(float, p.split(",")) for p in points), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] > ys[2] > ys[1]  # upwards is smaller
    assert (ys[0] - ys[2]) == pytest.approx((ys[0] - ys[1]) / 2, abs=0.2)
    assert "<b>" not in svg


def test_constant_single_and_missing_values():
    assert "polyline" in draw([(0.0, 2.0), (5.0, 2.0)], "flat")
    assert "circle" in draw([(3.0, 1.0)], "one")
    rows = [{"step": i, "loss": 1.0 if i % 2 else None} for i in range(6)]
    assert [curve.name for curve in training_curves(rows)] == ["loss"]
    assert training_curves([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1500.0, "1500"), (25_000.0, "25k"), (2e6, "2M"), (5e-4, "5e−4"), (-0.25, "−0.25")],
)
def test_ticks_are_short(value, text):
    assert short(value) == text


def test_percentages_and_names():
    assert percent(0.5) == ("50.0", "", 50.0)
    assert percent({"mean": 0.5, "std": 0.01}) == ("50.0", "± 1.0", 50.0)
    assert percent(None) == ("–", "", 0.0)
    assert visible("a" * 400) == "a" * 300 + "…"
