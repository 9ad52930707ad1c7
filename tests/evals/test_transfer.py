"""One encoder on several sources in one command."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evals.synthetic_runs import image_folder, tiny_encoder
from vitrail.cli import main
from vitrail.evals.evaluate import evaluate
from vitrail.evals.splits import open_splits

TWO = ["digits", "digits:scattered"]
PROTOCOLS = ["knn", "linear_10_per_class"]
FAST = {"linear": {"draws": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An RGB encoder; the digits are grey."""
    encoder = tiny_encoder("digits", size=8, channels=3)
    with torch.no_grad():
        for p in encoder.backbone.parameters():
            p.mul_(1.3)
    folder = tmp_path_factory.mktemp("transfer") / "run"
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def both(run):
    return evaluate(run, TWO, PROTOCOLS, settings=FAST, quiet=True)


def test_each_source_has_the_numbers_it_has_alone(run, both, tmp_path):
    for spec, numbers in (("digits", both), ("digits:scattered", both["transfer"][TWO[1]])):
        alone = evaluate(run, spec, PROTOCOLS, settings=FAST, out=tmp_path / spec[-1], quiet=True)
        assert "transfer" not in alone
        for key in (*PROTOCOLS, "features", "n_train", "n_test", "held_out"):
            assert numbers[key] == alone[key], key
    assert both["knn"] != both["transfer"][TWO[1]]["knn"]
    assert both["data"] == "digits"


def test_what_is_written_is_what_is_returned(run, both):
    written = json.loads((run / "evaluation.json").read_text())
    assert written == both
    assert set(written["transfer"]) == {"digits:scattered"}


def test_transfer_numbers_are_kept_and_added_to(run, both, tmp_path):
    for name in ("evaluation.json", "encoder.json", "encoder.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    more = evaluate(tmp_path, TWO, ["knn_majority"], settings=FAST, quiet=True)
    assert set(more["transfer"][TWO[1]]) >= {"knn", "knn_majority"}
    assert more["transfer"][TWO[1]]["knn"] == both["transfer"][TWO[1]]["knn"]
    alone = evaluate(tmp_path, "digits", ["knn"], settings=FAST, quiet=True)
    assert alone["transfer"] == more["transfer"]
    other = evaluate(tmp_path, "digits", ["knn"], settings=FAST | {"seed": 3}, quiet=True)
    assert "linear_10_per_class" not in other["transfer"][TWO[1]]  # of other draws
    assert other["transfer"][TWO[1]]["knn"] == both["transfer"][TWO[1]]["knn"]  # nothing is drawn
    means = FAST | {"metric": "mean_per_class"}
    assert "transfer" not in evaluate(tmp_path, "digits", ["knn"], settings=means, quiet=True)


def test_a_setting_drops_what_it_changes_and_nothing_else(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    names = ["knn", "knn_majority"]
    before = evaluate(tmp_path, TWO, names, settings=FAST, quiet=True)
    warmer = FAST | {"knn": {"tau": 0.5}}
    after = evaluate(tmp_path, TWO[0], ["linear"], settings=warmer, quiet=True)
    assert "knn" not in after
    assert "knn" not in after["transfer"][TWO[1]]
    assert after["knn_majority"] == before["knn_majority"]
    kept = after["transfer"][TWO[1]]["knn_majority"]
    assert kept == before["transfer"][TWO[1]]["knn_majority"]


def test_the_table_has_a_row_for_each_source(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    evaluate(run, TWO, ["knn"], settings=FAST, out=tmp_path)
    printed = capsys.readouterr().out
    table = printed[printed.index("transfer:") :]
    assert "knn" in table
    assert "digits:scattered" in table
    assert "RankMe" in table


def test_the_first_alone_has_pictures(run, tmp_path):
    named = ["knn", "pca", "confusion"]
    several, one = tmp_path / "several", tmp_path / "one"
    results = evaluate(run, TWO, named, settings=FAST, out=several, quiet=True)
    evaluate(run, TWO[0], named, settings=FAST, out=one, quiet=True)
    assert set(results["figures"]) == {"pca", "confusion"}
    assert "figures" not in results["transfer"][TWO[1]]
    for name in ("pca", "confusion"):
        of_both, of_first = (at / "figures" / f"{name}.png" for at in (several, one))
        assert of_both.read_bytes() == of_first.read_bytes()


def test_the_same_source_twice_is_once(run, tmp_path):
    results = evaluate(run, ["digits", "digits"], ["knn"], settings=FAST, out=tmp_path, quiet=True)
    assert "transfer" not in results


def test_others_without_labels_or_unknown_are_refused_before_the_work(run, tmp_path):
    root = image_folder(tmp_path / "flat", classes=("",), each=4)
    with pytest.raises(ValueError, match=r"flat has no labels \(.*\), so there is no accuracy"):
        evaluate(run, ["digits", f"folder:{root}"], out=tmp_path / "out", quiet=True)
    with pytest.raises(ValueError, match="unknown data 'digitz'"):
        evaluate(run, ["digits", "digitz"], out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_grey_encoder_on_coloured_files(tmp_path):
    root = tmp_path / "colours"
    for split, count in (("train", 6), ("test", 2)):
        for c, name in enumerate(("below", "above")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((9, 8 + i, 3), 20 + i, dtype=np.uint8)
                image[:4] += np.uint8(150 * c)  # the upper half
                image[4:] += np.uint8(150 * (1 - c))
                Image.fromarray(image).save(root / split / name / f"{i}.png")
    tiny_encoder("digits", size=8).save(tmp_path / "run")
    settings = {"knn": {"k": 3}}
    both = evaluate(
        tmp_path / "run", ["digits", f"folder:{root}"], ["knn"], settings=settings, quiet=True
    )
    numbers = both["transfer"][f"folder:{root}"]
    assert numbers["knn"]["raw"] == 1.0
    assert (numbers["n_train"], numbers["n_test"]) == (12, 4)


def test_several_k_and_the_mean_over_classes(run, tmp_path):
    three = {"knn": {"k": 5, "more_k": [1, 20]}}
    results = evaluate(
        run, "digits", ["knn", "knn_majority"], settings=three, out=tmp_path, quiet=True
    )
    for name in ("knn", "knn_majority"):
        by_k = results[name].pop("by_k")
        assert list(by_k) == ["1", "5", "20"]
        assert by_k["5"] == results[name]
        for k in (1, 20):
            one = {"knn": {"k": k}}
            alone = evaluate(run, "digits", [name], settings=one, out=tmp_path, quiet=True)
            assert by_k[str(k)] == alone[name]
    balanced = {"metric": "mean_per_class"}
    other = evaluate(run, "digits", ["knn"], settings=balanced, out=tmp_path, quiet=True)
    assert other["knn"] != evaluate(run, "digits", ["knn"], out=tmp_path, quiet=True)["knn"]


def test_a_source_says_what_accuracy_is_on_it_unless_told(run, tmp_path, monkeypatch, capsys):
    def splits(spec, channels):
        train, test = open_splits(spec, channels)
        test.metric = "mean_per_class"
        return train, test

    told = {"metric": "mean_per_class"}
    expected = evaluate(run, "digits", ["knn"], settings=told, out=tmp_path / "told", quiet=True)
    plain = evaluate(run, "digits", ["knn"], out=tmp_path / "plain", quiet=True)
    monkeypatch.setattr("vitrail.evals.evaluate.open_splits", splits)
    asked = evaluate(run, "digits", ["knn"], out=tmp_path / "asked")
    assert asked["knn"] == expected["knn"] != plain["knn"]
    assert (asked["metric"], plain["metric"]) == ("mean_per_class", "accuracy")
    assert "mean over classes" in capsys.readouterr().out
    other = {"metric": "accuracy"}
    assert (
        evaluate(run, "digits", ["knn"], settings=other, out=tmp_path, quiet=True)["knn"]
        == (plain["knn"])
    )


def test_the_command_takes_them_all(run, tmp_path):
    words = [run, "--data", *TWO, "--protocols", "knn", "finetune"]
    words += ["--knn.k", "5", "--knn.more-k", "10"]
    words += ["--out"]
    words += [tmp_path, "--metric", "mean_per_class", "--device", "cpu", "--workers", "0"]
    words += ["--finetune.epochs", "0", "--finetune.min-steps", "1", "--finetune.batch-size", "8"]
    main(["evaluate", *map(str, words)])
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(results["knn"]["by_k"]) == ["5", "10"]
    assert results["settings"]["metric"] == "mean_per_class"
    assert set(results["transfer"]["digits:scattered"]["finetune"]) == {"untrained", "trained"}
    settings = {
        "metric": "mean_per_class",
        "knn": {"k": 5, "more_k": (10,)},
        "finetune": {"epochs": 0, "min_steps": 1, "batch_size": 8},
    }
    again = evaluate(
        run, "digits", ["knn", "finetune"], settings=settings, out=tmp_path, quiet=True
    )
    assert again["knn"] == results["knn"]
