"""The protocols `maskcut` and `detection`: figures, numbers, files and refusals."""

import json

import pytest
from PIL import Image

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.data.tools.scenes import Layout, write_scenes
from vitrail.evals.evaluate import evaluate

CUT = {"tau": 0.9, "size": 48}  # few patches, and all much alike


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    write_scenes(folder / "scenes", 3, layout=Layout(size=64, gap=4))
    encoder = tiny_encoder(f"folder:{folder / 'scenes' / 'images'}", channels=3)
    encoder.save(folder / "run")
    return folder / "run"


def test_detection_is_trained_beside_untrained(run, capsys):
    place = {"folder": str(run.parent / "scenes")}
    settings = {"maskcut": CUT, "coco": place, "pictures": 2}
    found = evaluate(run, protocols=["detection"], settings=settings)["detection"]
    for kind in ("untrained", "trained"):
        assert found[kind]["images"] == 3
        assert set(found[kind]["mask"]) == {"AP", "AP50", "AP75"}
        rows = json.loads((run / f"predictions_{kind}.json").read_text())
        assert len(rows) == found[kind]["predictions"]
        assert {"image_id", "segmentation", "bbox", "score"} <= rows[0].keys()
    # These weights were never trained: the two are one encoder.
    assert found["trained"] == found["untrained"]
    assert Image.open(run / "figures" / "detection.png").width > 400
    assert "found by MaskCut in 3 images" in capsys.readouterr().out


def test_maskcut_draws_what_it_finds(run):
    settings = {"maskcut": CUT, "pictures": 2}
    results = evaluate(run, protocols=["maskcut"], settings=settings, quiet=True)
    assert results["figures"]["maskcut"] == "figures/maskcut.png"
    assert Image.open(run / "figures" / "maskcut.png").height > 400


def test_without_annotations_the_remedy_is_named(run):
    with pytest.raises(ValueError, match=r"--coco\.folder DIR"):
        evaluate(run, protocols=["detection"], quiet=True)
    settings = {"coco": {"folder": str(run.parent)}}
    with pytest.raises(ValueError, match=r"there is no file .*annotations\.json"):
        evaluate(run, protocols=["detection"], settings=settings, quiet=True)
