import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from tests.evals.synthetic_runs import image_folder, tiny_encoder
from vitrail.evals import feature_map
from vitrail.evals.evaluate import evaluate
from vitrail.evals.feature_map import (
    COLOURS,
    NAMED,
    map_figure,
    principal_plane,
    spread,
    umap_plane,
)


def test_the_plane_is_sklearns_up_to_sign():
    features = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32) + 5
    plane, share = principal_plane(features)
    pca = PCA(2, svd_solver="full").fit(features.astype(np.float64))
    np.testing.assert_allclose(np.abs(plane), np.abs(pca.transform(features)), atol=1e-5)
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-6)
    assert (plane[np.abs(plane).argmax(0), [0, 1]] > 0).all()


def test_features_that_are_all_alike_have_a_plane():
    plane, share = principal_plane(np.ones((5, 4), dtype=np.float32))
    np.testing.assert_allclose(plane, 0, atol=1e-6)
    assert share == 0


def test_features_without_a_plane_are_refused():
    with pytest.raises(ValueError, match=r"map: there are 2 images; a map needs at least 3"):
        principal_plane(np.ones((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="NaN"):
        principal_plane(np.full((4, 4), np.nan, dtype=np.float32))


def test_umap_is_asked_for_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"needs UMAP: pip install"):
        umap_plane(np.ones((9, 4), dtype=np.float32), 0)


def test_umap_is_given_a_seed_and_no_more_neighbours_than_there_are(monkeypatch):
    seen = {}

    class Umap:
        def __init__(self, **settings):
            seen.update(settings)

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    assert umap_plane(np.ones((9, 4), dtype=np.float32), 3).shape == (9, 2)
    assert (seen["random_state"], seen["n_neighbors"], seen["metric"]) == (3, 8, "cosine")


def test_thumbnails_lie_apart():
    plane = np.random.default_rng(0).normal(size=(500, 2))
    rows = spread(plane)
    unit = feature_map._unit(plane)[rows]
    distances = np.abs(unit[:, None] - unit[None]).max(2)
    assert len(rows) == feature_map.THUMBNAILS
    assert distances[~np.eye(len(rows), dtype=bool)].min() > feature_map.THUMBNAIL


def test_images_of_the_same_place_are_shown_once():
    plane = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]], 20, axis=0)
    rows = spread(plane)
    assert sorted(row // 20 for row in rows) == [0, 1, 2]


def colours_of(path):
    drawn = np.asarray(Image.open(path))
    return {tuple(row) for row in np.unique(drawn[drawn[..., 3] == 255][:, :3], axis=0).tolist()}


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize(("classes", "with_colour"), [(3, 3), (10, 10), (40, 9), (0, 0)])
def test_the_legend_names_as_many_classes_as_it_has_room_for(tmp_path, classes, with_colour):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % classes if classes else np.full(400, -1)
    names = [f"_class $x^2$ {'long' * c}" for c in range(classes)]
    picture = np.zeros((4, 4, 1))
    path = map_figure(
        {"raw": rng.normal(size=(400, 2)), "trained": rng.normal(size=(400, 2))},
        {"raw": "UMAP", "trained": "12% of the variance"},
        labels,
        names,
        {"raw": [0, 1], "trained": [2]},
        {0: picture, 2: picture},  # 1 could not be read
        tmp_path / "map.png",
    )
    # Opaque only in the legend: the points are translucent.
    found = colours_of(path)
    assert sum(rgb(colour) in found for colour in COLOURS) == with_colour
    assert with_colour <= NAMED


def test_unlabelled_images_are_mapped_raw_untrained_and_trained(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        feature_map, "map_figure", lambda planes, *rest: drawn.update(planes=planes, rest=rest)
    )
    data = f"folder:{image_folder(tmp_path / 'flat', classes=('',), each=20)}"
    tiny_encoder(data, channels=3).save(tmp_path / "run")
    results = evaluate(tmp_path / "run", data, ["map"], out=tmp_path / "out", quiet=True)
    assert list(drawn["planes"]) == ["raw", "untrained", "trained"]
    assert {len(plane) for plane in drawn["planes"].values()} == {results["n_test"]}
    notes, labels, names, chosen, pictures, path = drawn["rest"]
    assert (labels == -1).all()
    assert names == []
    assert path.name == "map.png"
    assert set(pictures) == {row for rows in chosen.values() for row in rows}
    assert all(note.endswith("of the variance") for note in notes.values())


def test_the_layout_is_a_setting(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    tiny_encoder("digits").save(tmp_path / "run")
    umap = {"map": {"layout": "umap"}}
    with pytest.raises(ValueError, match="map_layout 'umap' needs UMAP"):
        evaluate(tmp_path / "run", protocols=["map"], settings=umap, quiet=True)
