import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evals.synthetic_runs import image_folder, tiny_encoder
from vitrail.data.sources.registry import open_source
from vitrail.encoder import Encoder
from vitrail.evals.classification.knn import knn_accuracy
from vitrail.evals.evaluate import evaluate
from vitrail.evals.features import features, raw_side
from vitrail.evals.tables import percent


def perturbed(encoder):
    with torch.no_grad():
        for p in encoder.backbone.parameters():
            p.mul_(1.3)
    return encoder


@pytest.fixture
def run(tmp_path):
    image_folder(tmp_path / "data")
    perturbed(tiny_encoder(f"folder:{tmp_path / 'data'}", channels=3)).save(tmp_path / "run")
    return tmp_path / "run"


def test_features_are_those_of_transform_in_order(tmp_path):
    encoder = tiny_encoder("digits")
    source = open_source("digits", "test")
    table, labels, ids = features(encoder, source, batch_size=100)
    np.testing.assert_allclose(table, encoder.transform(source.pixels()), atol=1e-6)
    assert labels.tolist() == [source.label(i) for i in range(len(source))]
    assert ids[:2] == ["0", "1"]


def test_unreadable_files_are_left_out(tmp_path):
    root = image_folder(tmp_path / "data")
    (root / "a" / "0.png").write_bytes(b"not an image")
    source = open_source(f"folder:{root}", "train")
    encoder = tiny_encoder(f"folder:{root}", channels=3)
    table, labels, ids = features(encoder, source)
    assert len(table) == len(labels) == len(ids) == 29
    assert "a/0.png" not in ids


def test_all_protocols_write_one_file(run, capsys):
    results = evaluate(run, settings={"linear": {"draws": 2}})
    written = json.loads((run / "evaluation.json").read_text())
    assert written == results
    for name in ("knn", "linear", "linear_10_per_class"):
        assert list(written[name]) == ["raw", "untrained", "trained"]
    assert set(written["linear_10_per_class"]["trained"]) == {"mean", "std"}
    assert all(0 <= value <= 1 for value in written["knn"].values())
    assert written["linear"]["raw"] == 1.0  # the classes differ in brightness
    assert (written["n_train"], written["n_test"], written["held_out"]) == (24, 6, True)
    assert written["settings"]["linear"]["draws"] == 2
    assert 1 <= written["features"]["effective_rank"] <= 16
    for name in ("neighbours", "saliency", "pca", "xray"):
        assert (run / written["figures"][name]).stat().st_size > 500
    printed = capsys.readouterr().out
    assert "untrained" in printed
    assert "100.0" in printed


def test_the_numbers_are_those_of_the_three_features(run):
    results = evaluate(run, "digits", ["knn"], quiet=True)
    encoder = Encoder.load(run)
    train, test = (open_source("digits", split, channels=3) for split in ("train", "test"))
    x, y = train.pixels(), np.array([train.label(i) for i in range(len(train))])
    z, w = test.pixels(), np.array([test.label(i) for i in range(len(test))])
    for kind, embed in (
        ("raw", lambda images: encoder.preprocess(images).flatten(1).numpy()),
        ("untrained", tiny_encoder("digits", channels=3).transform),
        ("trained", encoder.transform),
    ):
        assert results["knn"][kind] == pytest.approx(knn_accuracy(embed(x), y, embed(z), w))
    assert results["knn"]["untrained"] != results["knn"]["trained"]


def test_results_of_other_protocols_are_kept_on_the_same_data_only(run):
    evaluate(run, "digits", ["knn"], quiet=True)
    second = evaluate(run, "digits", ["pca"], quiet=True)
    assert "pca" not in second  # it has a figure, and no numbers
    assert "knn" in second
    assert "knn" not in evaluate(run, None, ["pca"], quiet=True)


def test_unlabelled_data_give_pictures_and_say_so(tmp_path, capsys):
    root = image_folder(tmp_path / "flat", classes=("",), each=20)
    spec = f"folder:{root}"
    tiny_encoder(spec, channels=3).save(tmp_path / "run")
    results = evaluate(tmp_path / "run")
    assert set(results["figures"]) == {"map", "neighbours", "saliency", "pca", "xray"}
    assert not {"knn", "linear", "linear_10_per_class"} & set(results)
    out = capsys.readouterr().out
    assert "has no labels (its images are in no subfolders): no accuracies" in out
    with pytest.raises(ValueError, match=r"knn: .*has no labels"):
        evaluate(tmp_path / "run", protocols=["knn", "pca"])


def test_a_protocol_that_does_not_fit_is_left_out_unless_named(tmp_path, capsys):
    root = image_folder(tmp_path / "few", each=6)
    tiny_encoder(f"folder:{root}", channels=3).save(tmp_path / "run")
    with pytest.warns(UserWarning, match="clipped"):
        results = evaluate(tmp_path / "run")
    assert "knn" in results
    assert "linear_10_per_class" not in results
    assert "linear_10_per_class is left out: class 0 has 5" in capsys.readouterr().out
    with pytest.raises(ValueError, match="fewer than the 10"):
        evaluate(tmp_path / "run", protocols=["linear_10_per_class"])


def test_wrong_names_suggest_the_nearest(run):
    with pytest.raises(ValueError, match="unknown protocol 'kn'; did you mean 'knn'"):
        evaluate(run, protocols=["kn"])
    with pytest.raises(ValueError, match="unknown data"):
        evaluate(run, "digitz")


def test_raw_pixels_of_large_data_are_shrunk_to_fit_memory():
    preprocess = tiny_encoder("digits", size=28).preprocess
    assert raw_side(preprocess, 1, 60_000) == 28
    assert raw_side(preprocess, 1, 1_300_000) == 14


def test_percentages():
    assert percent(0.9142) == "91.4"
    assert percent({"mean": 0.5, "std": 0.0123}) == "50.0 ± 1.2"
    assert percent(None) == "–"


def test_what_was_measured_stays_when_a_protocol_cannot_be_measured(tmp_path, capsys):
    for split in ("train", "test"):
        image_folder(tmp_path / "data" / split, classes=tuple("abcdef"), each=1)
    tiny_encoder(f"folder:{tmp_path / 'data'}", channels=3).save(tmp_path / "run")
    asked = ["knn", "mean_average_precision", "linear"]
    with (
        pytest.warns(UserWarning, match="clipped"),
        pytest.raises(ValueError, match="measured, and"),
    ):
        evaluate(tmp_path / "run", protocols=asked)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {"knn", "linear"} < set(written)
    assert list(written["left_out"]) == ["mean_average_precision"]
    assert "mean_average_precision is left out" in capsys.readouterr().out


def test_every_protocol_is_on_the_disk_before_the_next_one_runs(run, monkeypatch):
    seen = {}

    def interrupted(context, *configs):
        seen.update(json.loads((run / "evaluation.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.evals.classification.linear.linear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, protocols=["knn", "linear"], quiet=True)
    assert set(seen["knn"]) == {"raw", "untrained", "trained"}
    assert json.loads((run / "evaluation.json").read_text()) == seen


def trained_on(tmp_path, objective, **facts):
    root = image_folder(tmp_path / "data")
    encoder = tiny_encoder(f"folder:{root}", channels=3)
    encoder.info |= {"objective": objective} | facts
    encoder.save(tmp_path / "run")
    return tmp_path / "run"


def test_images_trained_on_with_their_labels_are_no_test(tmp_path, capsys):
    run = trained_on(tmp_path, "supervised")
    results = evaluate(run, protocols=["knn"])
    spec = f"folder:{tmp_path / 'data'}"
    assert results["seen_in_training"] == {"with": "labels", "data": spec, "images": 6}
    said = " ".join(capsys.readouterr().out.split())
    assert "the 6 test images" in said
    assert "not a test: images trained on with their labels" in said
    assert "not a test" in results._repr_html_()


def test_images_trained_on_without_labels_are_named_but_still_tested(tmp_path, capsys):
    results = evaluate(trained_on(tmp_path, "simdino"), protocols=["knn"])
    assert results["seen_in_training"]["with"] == "images"
    said = " ".join(capsys.readouterr().out.split())
    assert "were seen in training, unlabelled" in said
    assert "not a test" not in said


@pytest.mark.parametrize("recorded", [True, False])
def test_labels_of_the_weights_that_a_run_started_from_count(tmp_path, recorded):
    """Stages before a warm start are read from encoder.json, or from older weights."""
    first = trained_on(tmp_path, "supervised")
    encoder, spec = Encoder.load(first), f"folder:{tmp_path / 'data'}"
    encoder.info |= {"objective": "simdino", "data": "digits", "init_from": str(first)}
    if recorded:
        encoder.info |= {"before": [{"data": spec, "used": "labels"}], "init_from": "/gone"}
    encoder.save(tmp_path / "second")
    results = evaluate(tmp_path / "second", spec, ["knn"], quiet=True)
    assert results["seen_in_training"] == {"with": "labels", "data": spec, "images": 6}


def test_identical_images_of_both_splits_are_counted_and_named(tmp_path, capsys):
    for split in ("train", "test"):
        image_folder(tmp_path / "data" / split)
    for path in (tmp_path / "data" / "test").glob("*/*.png"):
        if path.stem not in ("0", "1"):  # all others are other images
            Image.eval(Image.open(path), lambda value: 255 - value).save(path)
    tiny_encoder(f"folder:{tmp_path / 'data'}", channels=3).save(tmp_path / "run")
    results = evaluate(tmp_path / "run", protocols=["knn"])
    assert results["identical"]["images"] == 4
    assert results["identical"]["examples"][0].endswith("a/0.png")
    assert "pixel for pixel" in capsys.readouterr().out
    assert "seen_in_training" not in results


def test_a_test_set_that_another_data_set_of_labels_holds_is_found(tmp_path):
    root = image_folder(tmp_path / "data" / "test")
    image_folder(tmp_path / "data" / "train", size=24)
    encoder = tiny_encoder(f"folder:{root}", channels=3)
    encoder.info["objective"] = "supervised"
    encoder.save(tmp_path / "run")
    results = evaluate(tmp_path / "run", f"folder:{tmp_path / 'data'}", ["knn"], quiet=True)
    seen = results["seen_in_training"]
    assert (seen["images"], seen["compared"], seen["of"]) == (30, 30, 30)
