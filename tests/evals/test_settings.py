"""Settings: from dicts, from the command line, and from evaluations of earlier versions."""

import json
import shutil

import pytest

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.evals import settings as module
from vitrail.evals.classification.knn import Knn
from vitrail.evals.evaluate import evaluate
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import (
    MOVED,
    depends,
    flatten,
    make_settings,
    migrated,
    refuse_old_options,
    to_json,
)

# The settings of an evaluation.json that was written before protocols had groups.
OLD = {
    "k": 20,
    "more_k": [],
    "tau": 0.07,
    "metric": None,
    "draws": 2,
    "last_blocks": 4,
    "finetune": to_json(make_settings())["finetune"],
    "templates": ["{}"],
    "maskcut": {"tau": 0.15, "masks": 3, "size": 480},
    "coco": {"folder": "", "annotations": "annotations.json", "images": "images"},
    "image_size": None,
    "map_layout": "pca",
    "pictures": 8,
    "seed": 0,
}


def test_settings_are_given_as_dicts_or_configs():
    for knn in ({"k": 5}, Knn(k=5)):
        found = make_settings({"seed": 3, "knn": knn})
        assert (found.seed, found.knn, found.linear.draws) == (3, Knn(k=5), 10)
        assert make_settings(found) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"knn": {"kk": 5}}, "knn.kk is not a field; did you mean 'k'"),
        ({"kn": {"k": 5}}, "kn is not a field; did you mean 'knn'"),
        ({"knn": {"k": "5"}}, "knn.k is '5'; it must be int"),
        ({"knn": {"k": 0}}, "k = 0: k-NN needs at least one neighbour"),
        ({"knn": {"tau": 0.0}}, r"tau = 0\.0: it must be above 0"),
        ({"linear": {"draws": 0}}, "draws = 0: it must be at least 1"),
        ({"linear_sweep": {"last_blocks": 0}}, "last_blocks = 0: it must be at least 1"),
        ({"pictures": 0}, "pictures = 0: it must be at least 1"),
        ({"image_size": 0}, "image_size = 0: it must be at least 1 pixel"),
        ({"metric": "acuracy"}, "metric is 'acuracy'; did you mean 'accuracy'"),
        ({"more_k": [1]}, r"more_k is now knn\.more_k: give \{'knn': \{'more_k': \.\.\.\}\}"),
    ],
)
def test_what_is_no_setting_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_settings(values)


@pytest.mark.parametrize("name", MOVED)
def test_an_old_option_is_refused_with_the_new_one(name):
    old, new = (f"--{spelling.replace('_', '-')}" for spelling in (name, MOVED[name]))
    for words in ([old, "1"], [f"{old}=1"]):
        with pytest.raises(ValueError, match=f"{old} is now {new}$"):
            refuse_old_options(["run", *words])
    refuse_old_options(["run", new, "1", "--k-nearest", "k"])
    assert MOVED[name] in flatten(to_json(make_settings()))


def test_old_settings_are_todays():
    today = flatten(to_json(make_settings({"linear": {"draws": 2}})))
    found = flatten(migrated(OLD))
    assert found == {name: today[name] for name in found}
    assert len(found) == len(flatten(OLD))
    assert set(MOVED.values()) <= found.keys()
    assert migrated(to_json(make_settings())) == to_json(make_settings())
    assert migrated([3]) == {}


def test_a_protocol_depends_on_its_own_settings():
    changed = {s for s in flatten(to_json(make_settings())) if depends(PROTOCOLS["knn"], s)}
    assert changed == {"knn.k", "knn.more_k", "knn.tau", "metric"}
    majority = PROTOCOLS["knn_majority"]
    assert not depends(majority, "knn.tau")
    assert depends(PROTOCOLS["detection"], "coco.folder")
    assert depends(PROTOCOLS["detection"], "maskcut.tau")
    assert not depends(PROTOCOLS["pca"], "image_size")  # it gives no number
    assert depends(PROTOCOLS["pca"], "image_size", PROTOCOLS["pca"].figure.shared)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An encoder with an evaluation of two protocols, its settings in the old form."""
    run = tmp_path_factory.mktemp("old") / "run"
    tiny_encoder("digits", size=8).save(run)
    settings = {"linear": {"draws": 2}}
    evaluate(run, protocols=["knn", "linear_10_per_class"], settings=settings, quiet=True)
    file = run / "evaluation.json"
    known = json.loads(file.read_text())
    known["knn"]["trained"] = 0.123  # to be recognised
    known["linear_10_per_class"]["trained"]["mean"] = 0.456
    file.write_text(json.dumps(known | {"settings": OLD}))
    return run


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"linear": {"draws": 2}}, {"knn", "linear_10_per_class"}),
        ({}, {"knn"}),
        ({"linear": {"draws": 2}, "knn": {"tau": 0.1}}, {"linear_10_per_class"}),
        ({"linear": {"draws": 2}, "seed": 1}, {"knn"}),
        ({"linear": {"draws": 2}, "metric": "mean_per_class"}, set()),
        ({"linear": {"draws": 2}, "pictures": 2}, {"knn", "linear_10_per_class"}),
    ],
)
def test_results_of_an_old_file_are_reused(evaluated, tmp_path, settings, kept):
    run = shutil.copytree(evaluated, tmp_path / "run")
    found = evaluate(run, protocols=["saliency"], settings=settings, quiet=True)
    assert {"knn", "linear_10_per_class"} & found.keys() == kept
    if "knn" in kept:
        assert found["knn"]["trained"] == 0.123
    if "linear_10_per_class" in kept:
        assert found["linear_10_per_class"]["trained"]["mean"] == 0.456
    written = json.loads((run / "evaluation.json").read_text())
    assert written["settings"] == to_json(make_settings(settings))


def test_a_setting_of_another_version_drops_everything(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    file = run / "evaluation.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"settings": OLD | {"temperature": 2}}))
    found = evaluate(run, protocols=["saliency"], settings={"linear": {"draws": 2}}, quiet=True)
    assert "knn" not in found
    assert module.is_known("seed")
    assert not module.is_known("temperature")
