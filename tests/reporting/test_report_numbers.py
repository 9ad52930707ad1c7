"""Every number of evaluation.json finds its place, and pictures stay within the page's size."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.reporting.pages import PNG, Elements, make_run, require_self_contained, words_of
from vitrail.evals.protocol import Figure, Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.reporting import pictures as pictures_module
from vitrail.reporting.build import build_report
from vitrail.reporting.pictures import pictures
from vitrail.reporting.rows import accuracy_rows, listed, percent, transfer
from vitrail.reporting.run_files import RunFiles, read_run

THREE = {"raw": 0.5, "untrained": 0.25, "trained": 0.75}
FEW = {kind: {"mean": value, "std": 0.02} for kind, value in THREE.items()}


@pytest.mark.parametrize("name", [n for n, row in PROTOCOLS.items() if row.accuracies])
def test_every_protocol_with_accuracies_has_a_row(name):
    [row] = accuracy_rows({name: THREE, "settings": {"knn": {"k": 7}}})
    assert row.title
    assert "{" not in row.meaning
    assert len(row.meaning) > 20


def test_a_protocol_without_an_explanation_is_shown_by_its_meaning(monkeypatch):
    row = replace(PROTOCOLS["linear_sweep"], explanation="")
    monkeypatch.setitem(PROTOCOLS._registered, "sweep", row)
    [found] = accuracy_rows({"sweep": THREE})
    assert (found.title, found.meaning) == (row.title, row.meaning)


def test_each_k_has_a_row():
    by_k = {"by_k": {"100": THREE, "5": {"trained": 0.6}}}
    known = {"knn": THREE | by_k, "settings": {"knn": {"k": 5}}}
    rows = accuracy_rows(known)
    assert [row.title for row in rows] == [f"{PROTOCOLS['knn'].title}, k = {k}" for k in (5, 100)]
    assert [row.numbers["trained"] for row in rows] == [0.6, 0.75]
    assert "its 5 most" in rows[0].meaning


def test_what_was_chosen_is_told():
    [row] = accuracy_rows({"linear_sweep": THREE | {"chosen": {"trained": "pooled, lr 0.1"}}})
    assert row.meaning.endswith("Chosen: trained: pooled, lr 0.1.")


def test_numbers_that_are_no_accuracies_are_listed(monkeypatch):
    row = Protocol(run="none:run", title="Boxes", meaning="Boxes found.", unit="pixels")
    monkeypatch.setitem(PROTOCOLS._registered, "boxes", row)
    [entry] = listed({"boxes": {"masks": {"AP": 0.1234567, "AP50": None}, "images": 12, "n": [1]}})
    assert entry.numbers == [("masks AP", "0.1235"), ("images", "12")]
    assert (entry.title, entry.meaning) == ("Boxes, in pixels", "Boxes found.")
    assert not listed({"xray": {"images": 3}, "boxes": 3})


def test_transfer_has_its_table_and_its_command(tmp_path):
    other = {"folder:<b>": {"knn": THREE, "linear": {"trained": 0.125}, "n_train": 9}}
    run = make_run(tmp_path / "run", knn=THREE, linear_1_percent=FEW, transfer=other)
    page = build_report(run).read_text()
    text = words_of(page)
    assert "On other data" in text
    assert "12.5" in text
    assert "folder:<b>" in text
    assert "--data digits 'folder:<b>' --protocols knn linear_1_percent linear" in text
    assert "75.0 ± 2.0" in text


@pytest.mark.parametrize("damaged", [3, [], {"a": 1}, {"a": {"knn": 3}}])
def test_a_damaged_transfer_does_no_harm(tmp_path, damaged):
    run = make_run(tmp_path / "run", knn=THREE, transfer=damaged)
    assert "75.0" in words_of(build_report(run).read_text())


def test_one_source_is_no_transfer():
    assert transfer({"data": "digits", "knn": THREE}) == {}


def test_what_is_no_number_is_a_dash():
    assert percent(float("nan")) == ("–", "", 0.0)
    assert percent({"mean": "x"}) == ("–", "", 0.0)
    assert percent(1.5)[2] == 100.0


def test_the_metric_is_named(tmp_path):
    run = make_run(tmp_path / "run", knn=THREE, metric="mean_per_class")
    assert "Accuracy in percent, the mean over the classes," in words_of(
        build_report(run).read_text()
    )


def test_each_figure_and_table_has_its_command(tmp_path):
    figures = ("reconstruction", "confusion", "saliency", "xray")
    run = make_run(tmp_path / "my run", figures=figures, knn=THREE, zeroshot={"accuracy": 0.5})
    text = words_of(build_report(run).read_text())
    for protocols in ("confusion", "saliency", "xray", "knn", "zeroshot"):
        assert f"vitrail evaluate 'my run' --protocols {protocols}" in text
    assert "--protocols reconstruction" not in text
    # Of the run itself, in its settings, and for the reconstruction, the curves and the health.
    assert text.count("vitrail pretrain simdino_digits") == 5


def noise(side):
    rng = np.random.default_rng(side)
    target = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()


def test_pictures_that_are_too_many_become_smaller(monkeypatch):
    small, large = noise(40), noise(300)
    monkeypatch.setattr(pictures_module, "BUDGET", len(small) + len(large) - 1)
    files = RunFiles("run", pictures={"saliency": small, "pca": large})
    shown = pictures([files])
    assert shown["saliency"][0].uri.startswith("data:image/png")
    assert shown["pca"][0].uri.startswith("data:image/webp")
    assert (shown["pca"][0].width, shown["pca"][0].height) == (300, 300)
    assert files.remarks == []


def test_what_does_not_fit_is_left_out_and_told(monkeypatch):
    small, large = noise(40), noise(300)
    monkeypatch.setattr(pictures_module, "BUDGET", len(small))
    files = RunFiles("run", pictures={"saliency": small, "pca": large})
    assert list(pictures([files])) == ["saliency"]
    assert files.remarks == ["figures/pca.png is too large for this page and is left out"]


def test_ten_large_pictures_stay_below_ten_megabytes(tmp_path):
    run = make_run(tmp_path / "run", figures=(), knn=THREE)
    for name, side in (("saliency", 1100), ("pca", 1101), ("xray", 1102)):  # 3.6 MB each
        (run / "figures" / f"{name}.png").write_bytes(noise(side))
    page = build_report(run).read_text()
    require_self_contained(page)
    assert len(Elements(page).attributes("img")) == 3


def test_what_is_no_png_is_left_out_and_told(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "figures" / "pca.png").write_text("<svg onload=alert(1)>")
    (run / "figures" / "xray.png").write_bytes(PNG[:10])
    files = read_run(run)
    assert list(files.pictures) == ["neighbours"]
    assert len([remark for remark in files.remarks if "is not a PNG picture" in remark]) == 2


def test_the_figure_of_any_row_is_shown(tmp_path, monkeypatch):
    figure = Figure(kind="a grid", caption="Boxes and <b>.")
    row = Protocol(run="none:run", title="Boxes", meaning="Boxes.", unit=None, figure=figure)
    monkeypatch.setitem(PROTOCOLS._registered, "boxes", row)
    run = make_run(tmp_path / "run", figures=("boxes", "knn"))  # k-NN draws nothing
    [image] = Elements(build_report(run).read_text()).attributes("img")
    assert image["alt"] == "Boxes: a grid. Boxes and <b>."


def test_out_says_where_the_page_goes(tmp_path):
    run = make_run(tmp_path / "run", knn=THREE)
    page = build_report(run, out=tmp_path / "new" / "page.html")
    assert page == tmp_path / "new" / "page.html"
    assert page.exists()
    assert not (run / "report.html").exists()


def test_out_does_not_overwrite_what_is_no_page(tmp_path):
    run = make_run(tmp_path / "run", knn=THREE)
    for out in (run, run / "evaluation.json"):
        with pytest.raises(ValueError, match=r"is no name of a page; end it in \.html"):
            build_report(run, out=out)
    assert json.loads((run / "evaluation.json").read_text())["knn"] == THREE
