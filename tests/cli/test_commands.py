"""The commands one after the other on one run, as a user calls them, and the same in Python."""

import importlib.util
import json
import re

import numpy as np
import pytest

from tests.cli import shell
from tests.cli.shell import assert_refused, pretrain, vitrail

KINDS = ["recipes", "backbones", "objectives", "sources", "protocols"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("commands") / "run"
    assert pretrain(run).code == 0
    return run


def test_resume_of_a_finished_run_changes_nothing(run):
    before = shell.snapshot(run)
    code, out, err = vitrail("resume", run)
    assert (code, out) == (0, "")
    assert f"{run} is finished: all of its 2 steps are taken" in err
    assert shell.snapshot(run) == before


def test_an_encoder_that_was_not_exported_is_exported_by_resume(run):
    """Repeats the state after a kill between the last checkpoint and the export."""
    before = shell.snapshot(run)
    description = json.loads((run / "encoder.json").read_text())
    (run / "encoder.json").write_text(json.dumps(description | {"step": 1}))
    (run / "encoder.safetensors").write_bytes(b"of an earlier step")
    assert vitrail("resume", run).code == 0
    assert shell.snapshot(run) == before


def test_evaluate_then_report(run):
    code, out, _ = vitrail("evaluate", run, "--protocols", "knn", "linear_10_per_class")
    assert code == 0
    assert "knn" in out
    results = json.loads((run / "evaluation.json").read_text())
    for kind in ("raw", "untrained", "trained"):
        assert 0 < results["knn"][kind] <= 1
        assert set(results["linear_10_per_class"][kind]) == {"mean", "std"}
    code, out, _ = vitrail("report", run)
    assert code == 0
    assert out.strip() == str(run / "report.html")
    assert "<html" in (run / "report.html").read_text()


def test_embed_to_npz(run, tmp_path):
    out = tmp_path / "new" / "test.npz"
    assert vitrail("embed", run, "--out", out, "--split", "test").code == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["features"].shape == (len(arrays["labels"]), 64)
        assert arrays["features"].dtype == np.float32
        assert len(set(arrays["ids"].tolist())) == len(arrays["ids"])
        assert set(arrays["labels"].tolist()) == set(range(10))


def test_embed_to_parquet(run, tmp_path):
    out = tmp_path / "test.parquet"
    outcome = vitrail("embed", run, "--out", out, "--split", "test", "--data", "digits")
    if importlib.util.find_spec("pyarrow") is None:
        assert_refused(outcome, "pyarrow", "pip install 'vitrail[parquet]'")
        assert not out.exists()
        return
    import pyarrow.parquet as pq

    assert outcome.code == 0
    table = pq.read_table(out)
    assert table.column_names == ["features", "labels", "ids"]
    assert len(table["features"][0].as_py()) == 64


def test_list_shows_every_table():
    from vitrail.registry import REGISTRIES, registry

    code, everything, err = vitrail("list")
    assert (code, err) == (0, "")
    for kind in REGISTRIES:
        code, out, _ = vitrail("list", f"{kind}s")
        assert code == 0
        lines = [line.split() for line in out.splitlines()]
        named = [re.split(r"[:\[]", words[0])[0] for words in lines if words]  # of folder:DIR
        for name in registry(kind):
            assert name in named, (kind, name)
            assert name in everything


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], ["0.1.0"]),
        (["--help"], ["pretrain", "resume", "evaluate", "report", "embed", "list"]),
        (["pretrain", "--help"], ["RECIPE", "simdino_digits", "--out"]),
        (
            ["pretrain", "simdino_digits", "--help"],
            ["--optim.lr", "--objective.eps", "passes over"],
        ),
        (["pretrain", "dino_vits_fashion", "--help"], ["--objective.out-dim", "4096"]),
        (["pretrain", "crate_fashion_supervised", "-h"], ["--objective.label-smoothing"]),
        (["list", "--help"], KINDS),
        (["resume", "--help"], ["vitrail resume"]),
        (["evaluate", "--help"], ["--protocols"]),
        (["report", "--help"], ["vitrail report"]),
        (["embed", "--help"], ["--split"]),
    ],
)
def test_help(arguments, words):
    code, out, err = vitrail(*arguments)
    assert code == 0
    assert err == ""
    for word in words:
        assert word in out, out


def test_every_recipe_can_be_asked_for_its_fields():
    from vitrail.recipes.named import get_recipe
    from vitrail.recipes.registry import RECIPES

    for name in RECIPES:
        code, out, err = vitrail("pretrain", name, "--help")
        assert (code, err) == (0, ""), name
        assert get_recipe(name).backbone in out


def test_from_python(tmp_path):
    import vitrail

    views = {"global_size": 16, "local_size": 8, "n_local": 1}
    run = vitrail.pretrain(
        "simdino_digits",
        out=tmp_path / "run",
        data="digits",
        epochs=0.01,
        batch_size=8,
        device="cpu",
        optim={"lr": 5e-4, "warmup_epochs": 0},
        objective={"views": views, "hidden_dim": 16, "bottleneck_dim": 8},
    )
    rows = shell.read_lines(run / "metrics.jsonl")
    assert len(rows) == round(0.01 * 1297 / 8)
    assert rows[0]["lr"] == pytest.approx(5e-4)
    images = np.zeros((3, 8, 8), dtype=np.uint8)
    assert vitrail.load(run).transform(images).shape == (3, 64)
    assert vitrail.resume(run) == run
    for changes, complaint in [
        ({"epoch": 3}, "epoch is not a field; did you mean 'epochs'"),
        ({"optim": {"rate": 3}}, r"optim\.rate is not a field"),
        ({"optim": {"lr": "high"}}, r"optim\.lr is 'high'; it must be float"),
        ({"steps": 0}, "steps is 0"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            vitrail.pretrain("simdino_digits", out=tmp_path / "not", **changes)
    with pytest.raises(ValueError, match="did you mean 'simdino_digits'"):
        vitrail.pretrain("simdino_digit", out=tmp_path / "not")
    assert not (tmp_path / "not").exists()
