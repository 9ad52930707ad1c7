"""Files that cannot be read: left out of an evaluation, named, counted, up to what is allowed."""

import json

import numpy as np
import pytest

from tests.evals.synthetic_runs import image_folder, tiny_encoder
from vitrail.data.loading.quarantine import Quarantine
from vitrail.evals.embed import embed
from vitrail.evals.evaluate import evaluate
from vitrail.evals.splits import MAX_BAD_FRACTION, bad_file_limit, bad_file_summary


@pytest.fixture
def run(tmp_path):
    """An encoder on 30 images, 3 of them bad, whose run allows a fifth to be."""
    root = image_folder(tmp_path / "images", each=15)
    for name in ("a/0.png", "a/1.png", "b/7.png"):
        (root / name).write_bytes(b"junk")
    tiny_encoder(f"folder:{root}", channels=3).save(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"max_bad_fraction": 0.2}')
    return tmp_path / "run"


def allow(run, share: float) -> None:
    (run / "config.json").write_text(json.dumps({"max_bad_fraction": share}))


def test_an_evaluation_counts_and_names_what_it_leaves_out(run, capsys):
    allow(run, 0.5)
    results = evaluate(run, protocols=["knn"])
    assert sum(results["bad"].values()) == 3
    assert results["n_train"] + results["n_test"] == 27
    said = " ".join(capsys.readouterr().out.split())
    assert "left out (" in said
    assert all(name in said for name in ('"a/0.png"', '"a/1.png"', '"b/7.png"'))
    assert json.loads((run / "evaluation.json").read_text())["bad"] == results["bad"]


def test_it_stops_at_the_run_s_own_share_or_at_the_one_asked_for(run):
    allow(run, 0.05)
    with pytest.raises(ValueError, match=r"more than the share of 0\.05 that is allowed"):
        evaluate(run, protocols=["knn"], quiet=True)
    assert "bad" in evaluate(run, protocols=["knn"], max_bad_fraction=0.5, quiet=True)
    with pytest.raises(ValueError, match=r"more than the share of 0 that is allowed"):
        evaluate(run, protocols=["knn"], max_bad_fraction=0.0, quiet=True)


def test_other_protocols_than_features_share_the_list(run, monkeypatch):
    from vitrail.data.sources.formats.folder import FolderSource

    allow(run, 0.5)
    read, reads = FolderSource.read, []

    def counted(self, index, detail=None):
        reads.append(self.id(index))
        return read(self, index, detail)

    monkeypatch.setattr(FolderSource, "read", counted)
    evaluate(run, protocols=["linear_sweep"], quiet=True)
    assert reads.count("a/2.png") > 1
    assert [reads.count(name) for name in ("a/0.png", "a/1.png", "b/7.png")] == [1, 1, 1]


def test_pictures_name_what_they_cannot_show(run, capsys):
    """Refuses too many bad files also if no features were computed, which read the images first."""
    allow(run, 0.5)
    results = evaluate(run, protocols=["pca"], settings={"pictures": 30})
    names = [name for name in ("a/0.png", "a/1.png", "b/7.png") if name in capsys.readouterr().out]
    assert results["bad"] == {"test": len(names)}
    assert names


def test_nothing_is_said_where_nothing_is_bad(tmp_path, capsys):
    root = image_folder(tmp_path / "images", each=15)
    tiny_encoder(f"folder:{root}", channels=3).save(tmp_path / "run")
    assert "bad" not in evaluate(tmp_path / "run", protocols=["knn"])
    assert "left out" not in capsys.readouterr().out


def test_embed_leaves_out_and_stops_alike(run, tmp_path, capsys):
    path = embed(run, tmp_path / "features.npz")
    assert len(np.load(path)["ids"]) == 27
    assert '3 train images cannot be used and are left out ("a/0.png": ' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"more than the share of 0\.05 that is allowed"):
        embed(run, tmp_path / "features.npz", max_bad_fraction=0.05)


def test_what_is_allowed(tmp_path, run):
    assert bad_file_limit(run, None) == 0.2
    assert bad_file_limit(run / "encoder.safetensors", None) == 0.2
    assert bad_file_limit(run, 0.7) == 0.7
    for content in ("no JSON", "[]", "{}", '{"max_bad_fraction": 3}', '{"max_bad_fraction": null}'):
        (run / "config.json").write_text(content)
        assert bad_file_limit(run, None) == MAX_BAD_FRACTION
    assert bad_file_limit(tmp_path / "weights.pth", None) == MAX_BAD_FRACTION


def test_many_bad_files_are_not_all_named():
    quarantine = Quarantine(None, 100)
    for i in range(5):
        quarantine.add(f"{i}.png", "empty")
    assert bad_file_summary("test", quarantine) == (
        '5 test images cannot be used and are left out ("0.png": empty; "1.png": empty; '
        '"2.png": empty; and 2 more)'
    )
