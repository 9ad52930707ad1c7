"""Runs side by side: what differs is shown, and what cannot be compared is not compared."""

import json
import re
from pathlib import Path

import pytest

from tests.reporting.pages import (
    SETTINGS,
    Elements,
    make_run,
    require_self_contained,
    words_of,
    write_metrics,
)
from vitrail import cli
from vitrail.reporting.build import build_report
from vitrail.reporting.compare import comparison, read_runs
from vitrail.reporting.curves import training_overlays


def three(trained, untrained=0.1):
    return {"raw": 0.5, "untrained": untrained, "trained": trained}


RANK = {"dimensions": 64, "rankme": 25.5, "rankme_untrained": 16.0}
WORDS = {"accuracy": 0.5, "chance": 0.125, "templates": ["{}"]}


@pytest.fixture
def pair(tmp_path):
    first = make_run(tmp_path / "a", knn=three(0.4), linear=three(0.6), features=RANK)
    second = make_run(tmp_path / "b", objective="swav", knn=three(0.3, 0.2), zeroshot=WORDS)
    return first, second


def shown(*runs):
    return comparison(read_runs(runs), Path("cmp.html"))


def cells(context, spec="digits"):
    [matrix] = [m for m in context["matrices"] if m.data == spec]
    return {row.title: [(c.main, c.small) for c in found] for row, found in matrix.rows}


def warnings(context, spec="digits"):
    [matrix] = [m for m in context["matrices"] if m.data == spec]
    return {row.name: row.warning for row, _ in matrix.rows}


def test_the_page_holds_both(pair, tmp_path):
    path = build_report(*pair, out=tmp_path / "cmp.html")
    assert path == tmp_path / "cmp.html"
    page = path.read_text()
    require_self_contained(page)
    text = words_of(page)
    assert "a · b" in text
    assert "vitrail report a b --out cmp.html" in text
    assert "vitrail evaluate a --protocols neighbours" in text
    assert "vitrail pretrain swav_digits" in text
    parsed = Elements(page)
    assert [image["alt"].split(":")[0] for image in parsed.attributes("img")] == [
        "Nearest neighbours, a",
        "Nearest neighbours, b",
    ]
    ids = {attributes["id"] for attributes in parsed.attributes("section")}
    assert {a["href"].removeprefix("#") for a in parsed.attributes("a")[1:]} == ids
    levels = [int(tag[1]) for tag, _ in parsed.found if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert not any((run / "report.html").exists() for run in pair)


def test_trained_values_stand_over_untrained_ones(pair):
    found = cells(shown(*pair))
    assert found["k-nearest neighbours, k = 20"] == [
        ("40.0", "untrained 10.0"),
        ("30.0", "untrained 20.0"),
    ]
    assert found["Linear, all labels"] == [("60.0", "untrained 10.0"), ("–", "")]
    assert found["Class from its name, no label seen"] == [("–", ""), ("50.0", "chance 12.5")]
    assert found["RankMe"] == [("25.5", "untrained 16.0"), ("–", "")]


def test_only_facts_that_differ_are_in_the_table(pair):
    context = shown(*pair)
    differing = {name: [cell.main for cell in found] for name, found in context["differing"]}
    assert differing["Objective"] == ["simdino", "swav"]
    assert "Seed" not in differing
    assert ("Seed", "0") in context["same"]
    assert [name for name, _ in context["settings"]] == ["name", "objective.kind"]


def test_equal_evaluations_need_no_remark(pair):
    context = shown(*pair)
    assert context["remarks"] == []
    assert not any(warnings(context).values())


def test_settings_that_differ_are_remarked_where_they_count(tmp_path):
    numbers = {"knn": three(0.4), "linear_10_per_class": three(0.3), "linear": three(0.2)}
    a = make_run(tmp_path / "a", **numbers)
    b = make_run(tmp_path / "b", settings=SETTINGS | {"tau": 0.5, "draws": 3}, **numbers)
    context = shown(a, b)
    [remark] = context["remarks"]
    assert "knn.tau (a: 0.07, b: 0.5); linear.draws (a: 10, b: 3)" in remark
    assert "not comparable" in remark
    assert warnings(context) == {
        "knn": "Not comparable: not the same knn.tau.",
        "linear_10_per_class": "Not comparable: not the same linear.draws.",
        "linear": "",
    }


def test_the_metric_counts_everywhere_but_for_ranks(tmp_path):
    a = make_run(tmp_path / "a", knn=three(0.4), features=RANK)
    other = SETTINGS | {"metric": "mean_per_class", "unknown": 1}
    b = make_run(tmp_path / "b", knn=three(0.4), features=RANK, settings=other)
    assert warnings(shown(a, b)) == {
        "knn": "Not comparable: not the same metric, unknown.",
        "features": "",
    }


def test_what_an_older_evaluation_does_not_say_is_as_usual(tmp_path):
    a = make_run(tmp_path / "a", knn=three(0.4))
    newer = SETTINGS | {"metric": None, "more_k": []}
    b = make_run(tmp_path / "b", knn=three(0.4), settings=newer, held_out=False)
    context = shown(a, b)
    assert context["remarks"] == []
    assert warnings(context) == {"knn": ""}


def test_other_k_are_other_rows(tmp_path):
    by_k = {"by_k": {"5": three(0.1), "20": three(0.2)}}
    a = make_run(tmp_path / "a", knn=three(0.2) | by_k)
    b = make_run(tmp_path / "b", knn=three(0.3))
    c = make_run(tmp_path / "c", knn=three(0.4), settings=SETTINGS | {"k": 7})
    context = shown(a, b, c)
    mains = {title[-6:]: [main for main, _ in found] for title, found in cells(context).items()}
    assert mains == {
        " k = 5": ["10.0", "–", "–"],
        " k = 7": ["–", "–", "40.0"],
        "k = 20": ["20.0", "30.0", "–"],
    }
    assert "knn.k (a: 20, b: 20, c: 7)" in context["remarks"][0]


def test_other_data_are_another_table(tmp_path):
    a = make_run(tmp_path / "a", knn=three(0.4), transfer={"emoji": {"knn": three(0.9)}})
    b = make_run(tmp_path / "b", data="emoji", knn=three(0.3))
    context = shown(a, b)
    assert [m.data for m in context["matrices"]] == ["digits", "emoji"]
    assert cells(context, "emoji")["k-nearest neighbours, k = 20"][0][0] == "90.0"
    assert cells(context, "emoji")["k-nearest neighbours, k = 20"][1][0] == "30.0"
    assert cells(context, "digits")["k-nearest neighbours, k = 20"][1] == ("–", "")
    assert "data (a: digits, b: emoji)" in context["remarks"][0]
    assert context["galleries"][0].warning == "These differ in more than the encoder: data."
    commands = context["matrices"][1].again
    assert commands == [
        "vitrail evaluate a --data digits emoji --protocols knn",
        "vitrail evaluate b --protocols knn",
    ]


def test_other_numbers_of_images_are_not_comparable(tmp_path):
    a = make_run(tmp_path / "a", knn=three(0.4))
    b = make_run(tmp_path / "b", knn=three(0.4), n_train=100)
    assert warnings(shown(a, b))["knn"] == "Not comparable: not the same training images."


def test_losses_of_different_objectives_are_not_overlaid(pair, tmp_path):
    third = make_run(tmp_path / "c")
    runs = read_runs([*pair, third])
    lines = {}
    for curve in training_overlays(runs):
        lines.setdefault(curve.name, []).append([run for run, _ in curve.lines])
    assert lines["loss"] == lines["grad_norm"] == lines["compression"] == [["a", "c"], ["b"]]
    assert lines["lr"] == lines["images_per_s"] == [["a", "b", "c"]]
    assert "not comparable, nor is" in words_of(
        build_report(*pair, out=tmp_path / "x.html").read_text()
    )
    alike = build_report(pair[0], third, out=tmp_path / "y.html").read_text()
    assert "not comparable, nor is" not in words_of(alike)


def test_other_data_or_settings_or_no_config_set_a_loss_apart(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", data="emoji")
    config = json.loads((make_run(tmp_path / "c") / "config.json").read_text())
    config["objective"]["temperature"] = 0.2
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    for name in "de":
        (make_run(tmp_path / name) / "config.json").unlink()
    losses = training_overlays(read_runs([tmp_path / name for name in "abcde"]))
    assert [len(curve.lines) for curve in losses if curve.name == "loss"] == [1] * 5


def test_overlaid_lines_share_their_axes(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    write_metrics(b, steps=15)
    [loss] = [c for c in training_overlays(read_runs([a, b])) if c.name == "loss"]
    ends = [
        points.split()[-1] for points in re.findall('class="line s." points="([^"]*)"', loss.svg)
    ]
    (x_a, y_a), (x_b, y_b) = (map(float, end.split(",")) for end in ends)
    left = float(re.search('class="line s0" points="([^,]*),', loss.svg)[1])
    assert (x_b - left) / (x_a - left) == pytest.approx(14 / 29, abs=0.01)
    assert y_b < y_a  # its loss is higher still
    assert "a from 1 to 0.05502; b from 1 to 0.2466" in loss.svg


def test_a_run_that_was_not_evaluated_is_shown_as_such(pair, tmp_path):
    bare = make_run(tmp_path / "bare", figures=())
    page = words_of(build_report(*pair, bare, out=tmp_path / "cmp.html").read_text())
    assert "Not evaluated yet: bare (vitrail evaluate)." in page
    assert "This run has no such picture." in page


def test_no_run_was_evaluated(tmp_path):
    runs = [make_run(tmp_path / name, figures=()) for name in "ab"]
    assert "No numbers were measured" in words_of(
        build_report(*runs, out=tmp_path / "x.html").read_text()
    )


def test_states_and_remarks_name_their_run(pair):
    (pair[0] / "evaluation.json").write_text("{")
    write_metrics(pair[1], steps=12)
    remarks = shown(*pair)["remarks"]
    assert any(r.startswith("b: This run is not finished: 12 of 30") for r in remarks)
    assert any(r.startswith("a: evaluation.json cannot be read") for r in remarks)


def test_equal_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / group / "run", knn=three(0.4)) for group in ("x", "y")]
    context = shown(*runs)
    assert context["names"] == ["x/run", "y/run"]
    assert context["again"] == "vitrail report x/run y/run --out cmp.html"
    assert "vitrail evaluate y/run" in context["matrices"][0].again[1]


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
    with pytest.raises(ValueError, match="the page of 2 runs needs a name: give --out"):
        build_report(*pair)
    with pytest.raises(ValueError, match="is named more than once"):
        build_report(pair[0], pair[0] / ".." / "a", out=tmp_path / "x.html")
    with pytest.raises(ValueError, match=r"there is no run folder .*missing"):
        build_report(pair[0], tmp_path / "missing", out=tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_command_line_compares(pair, tmp_path, capsys):
    out = tmp_path / "cmp.html"
    cli.main(["report", *map(str, pair), "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert out.exists()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *map(str, pair)])
    assert stopped.value.code == 1
    assert "--out" in capsys.readouterr().err


def test_json_of_the_wrong_shape_harms_no_comparison(pair, tmp_path):
    (pair[0] / "evaluation.json").write_text(
        '{"knn": {"by_k": 3}, "features": {"rankme": 3, "dimensions": 0}, "settings": 1, "data": 2}'
    )
    (pair[0] / "config.json").write_text('{"objective": "x", "steps": {"a": [1]}}')
    (pair[0] / "metrics.jsonl").write_text('{"step": "a", "loss": [1], "health": 3}\n[1]\n')
    assert "RankMe" in build_report(*pair, out=tmp_path / "x.html").read_text()
