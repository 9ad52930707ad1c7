import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.backbones.contract import Backbone, Features
from vitrail.data.tools.scenes import ideal_features, make_scene
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.figures.overlays import COLOURS, overlay, overlays_figure
from vitrail.evals.patches import normalised_cut
from vitrail.evals.patches.detection import partners
from vitrail.evals.patches.maskcut import (
    MaskCut,
    discover,
    foreground,
    maskcut_figure,
    overlap,
    segment,
    similar,
    to_image,
)
from vitrail.evals.patches.normalised_cut import dense_eigenvector, second_eigenvector

SIDE = 24  # patches; 576 nodes are too many for the shortcut to the dense solver


def some_keys(kind, side=SIDE, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "parts":  # three squares on a ground: four parts that nothing connects
        label = np.zeros((side, side), dtype=int)
        label[2:9, 2:8], label[12:20, 3:12], label[5:18, 15:22] = 1, 2, 3
        keys = np.eye(4)[label]
    elif kind == "noisy parts":
        return torch.from_numpy(ideal_features(make_scene(seed), side, 2.3, seed))
    elif kind == "smooth":
        noise = rng.standard_normal((side, side, 48))
        keys = ndimage.gaussian_filter(noise, (2, 2, 0)) + 0.05 * noise
    else:  # "noise": almost no edges
        keys = rng.standard_normal((side, side, 200))
    return torch.from_numpy(keys).float()


def second_of_all(connected):
    """The vector and value, from the symmetric form of Shi & Malik's equation 7."""
    weight = np.where(connected.numpy(), 1.0, 1e-5)
    degree = weight.sum(1)
    laplacian = np.diag(degree) - weight
    values, vectors = np.linalg.eigh(laplacian / np.sqrt(np.outer(degree, degree)))
    vector = vectors[:, 1] / np.sqrt(degree)
    return vector * np.sign(vector[np.abs(vector).argmax()]), values[1]


@pytest.mark.parametrize("solve", [second_eigenvector, dense_eigenvector])
@pytest.mark.parametrize("kind", ["noisy parts", "smooth", "noise"])
def test_the_eigenvector_is_the_second_smallest(kind, solve):
    connected = similar(some_keys(kind), 0.15)
    vector, value = second_of_all(connected)
    found = solve(connected)
    assert (found.passes > 0) == (solve is second_eigenvector)
    assert found.value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(found.vector, vector, atol=1e-4 * np.abs(vector).max())


def test_parts_that_nothing_connects_are_told_apart():
    """The first eigenvalues lie 1e-5 apart, and a vector is constant on each part."""
    keys = some_keys("parts")
    found = second_eigenvector(similar(keys, 0.15))
    assert 0 < found.passes < 10
    vector, value = second_of_all(similar(keys, 0.15))
    assert found.value == pytest.approx(value, abs=1e-9)
    assert 0 < found.value < 1e-4
    np.testing.assert_allclose(found.vector, vector, atol=1e-6 * np.abs(vector).max())


def test_the_same_graph_gives_the_same_bits():
    connected = similar(some_keys("smooth"), 0.15)
    first, again = second_eigenvector(connected), second_eigenvector(connected)
    assert torch.equal(first.vector, again.vector)
    assert first.value == again.value


def test_without_convergence_it_is_the_dense_solvers(monkeypatch):
    connected = similar(some_keys("noise"), 0.15)
    assert second_eigenvector(connected).passes > 5
    found = second_eigenvector(connected, max_passes=5)
    assert found.passes == 0
    assert torch.equal(found.vector, dense_eigenvector(connected).vector)
    monkeypatch.setattr(
        normalised_cut, "FLOOR", 1.0
    )  # any residual will do: the check is what refuses it
    assert second_eigenvector(connected, max_passes=5).passes == 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_smallest_graphs_have_an_eigenvector(n):
    connected = torch.eye(n, dtype=torch.bool)
    connected[0, 1] = connected[1, 0] = True
    found = second_eigenvector(connected)
    assert found.vector.abs().argmax() == int(found.vector.argmax())
    assert 0 <= found.value <= 2


@pytest.mark.parametrize("kind", ["parts", "noisy parts", "smooth"])
@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_the_dense_solver(kind, seed):
    keys = some_keys(kind, seed=seed)
    expected = discover(keys, 0.15, 3, dense_eigenvector)
    masks = discover(keys, 0.15, 3)
    assert len(masks) == len(expected) > 0
    assert min(map(overlap, masks, expected)) >= 0.99


def test_every_part_is_found_once_the_ground_never():
    keys = some_keys("parts")
    label = keys.argmax(-1).numpy()
    masks = discover(keys, 0.15, 3)
    assert sorted(int(label[mask][0]) for mask in masks) == [1, 2, 3]
    for mask in masks:
        np.testing.assert_array_equal(mask, label == label[mask][0])
    assert len(discover(keys, 0.15, 2)) == 2
    # A fourth pass finds a part again, which is nothing new.
    assert len(discover(keys, 0.15, 8)) == 3


def test_objects_of_the_same_features_are_apart_where_they_are():
    label = np.zeros((SIDE, SIDE), dtype=int)
    label[2:8, 2:8] = label[12:20, 12:20] = 1
    masks = discover(torch.from_numpy(np.eye(2)[label]).float(), 0.15, 3)
    assert sorted(mask.sum() for mask in masks) == [36, 64]
    assert (masks.sum(0) == (label == 1)).all()


def test_a_second_object_of_one_per_cent_is_too_small():
    label = np.zeros((SIDE, SIDE), dtype=int)
    label[3:9, 3:9], label[15:17, 15:17] = 1, 2  # 4 of 576 patches
    keys = torch.from_numpy(np.eye(3)[label]).float()
    assert [mask.sum() for mask in discover(keys, 0.15, 3)] == [36]
    label[15:18, 15:17] = 2  # 6 of them
    keys = torch.from_numpy(np.eye(3)[label]).float()
    assert sorted(mask.sum() for mask in discover(keys, 0.15, 3)) == [6, 36]


@pytest.mark.parametrize(("rows", "found"), [(9, 1), (10, 2), (11, 2)])
def test_an_object_that_is_mostly_the_one_before_is_not_new(rows, found):
    """The first is 5 rows; the second those and more; it is new up to an IoU of 1/2."""
    cuts = []
    for height in (5, rows):
        vector = torch.full((SIDE, SIDE), -1.0, dtype=torch.float64)
        vector[4 : 4 + height, 2:22] = 2.0
        cuts.append(normalised_cut.Eigenvector(vector.flatten(), 0.1, 1))
    masks = discover(some_keys("parts"), 0.15, 2, lambda _: cuts.pop(0))
    assert len(masks) == found
    assert [mask.sum() for mask in masks] == [100, 20 * (rows - 5)][:found]


def test_tau_says_what_is_alike():
    """Ground and object have a cosine of 0.5, which is alike below that."""
    label = np.zeros((SIDE, SIDE), dtype=int)
    label[5:15, 8:14] = 1
    keys = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])[torch.from_numpy(label)]
    np.testing.assert_array_equal(discover(keys, 0.6, 1)[0], label == 1)
    assert discover(keys, 0.4, 1).shape == (0, SIDE, SIDE)


@pytest.mark.parametrize("keys", [torch.ones(SIDE, SIDE, 4), torch.zeros(4, 4, 4) + 3])
def test_patches_that_are_all_alike_have_no_object(keys):
    assert len(discover(keys, 0.15, 3)) == 0


def test_the_object_is_the_side_of_the_seed_and_its_part():
    vector = torch.full((6, 6), -0.1, dtype=torch.float64)
    vector[2:4, 2:4] = torch.tensor([[0.9, 1.0], [0.9, 0.9]])
    vector[5, 3] = 0.8  # the same side, elsewhere
    mask = foreground(vector)
    assert mask[2:4, 2:4].all()
    assert mask.sum() == 4


@pytest.mark.parametrize(("corners", "turned"), [(2, False), (3, True), (4, True)])
def test_a_side_with_three_corners_is_the_ground(corners, turned):
    vector = torch.full((6, 6), 0.5, dtype=torch.float64)
    vector[0, 1] = 1.0  # the seed
    vector[2:4, 2:4] = -0.9
    for y, x in [(0, 5), (5, 0)][: 4 - corners]:
        vector[y, x] = -0.3
    mask = foreground(vector)
    assert mask[0, 1] != turned
    assert mask[2, 2] == turned
    assert not (turned and mask[[0, 5], [5, 0]].any())  # corners of the other side hang elsewhere


def test_masks_come_to_the_size_of_the_image():
    mask = np.zeros((1, 3, 3), dtype=bool)
    mask[0, 1, 2] = True
    seen = np.zeros((12, 12, 3), dtype=np.uint8)
    (drawn,) = to_image(mask, seen, (6, 9))
    assert drawn.shape == (6, 9)
    expected = np.zeros((6, 9), dtype=bool)
    expected[2:4, 6:9] = True
    np.testing.assert_array_equal(drawn, expected)
    assert to_image(mask[:0], seen, (6, 9)).shape == (0, 6, 9)
    assert to_image(mask, seen, (1, 1)).shape == (0, 1, 1)  # less than half of the pixel


def test_a_refinement_is_asked_filled_and_held_to_its_mask():
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 1:3, 1:4] = True
    seen = np.full((16, 16, 1), 7, dtype=np.uint8)
    asked = []

    def pierce(image, mask_SS):
        asked.append((image, mask_SS))
        pierced = mask_SS.copy()
        pierced[6, 6] = False
        return pierced

    (drawn,) = to_image(mask, seen, (16, 16), pierce)
    np.testing.assert_array_equal(drawn, np.kron(mask[0], np.ones((4, 4), dtype=bool)))
    assert asked[0][0] is seen
    np.testing.assert_array_equal(asked[0][1], drawn)
    # Moved so far that less than half is common.
    assert len(to_image(mask, seen, (16, 16), lambda _, m: np.roll(m, 5, axis=0))) == 0
    assert len(to_image(mask, seen, (16, 16), lambda _, m: np.roll(m, 2, axis=0))) == 1


@pytest.mark.parametrize("name", ["vit_nano_patch4_28", "crate_nano_patch4_28"])
def test_images_of_any_shape_have_masks_of_their_own_size(name):
    encoder = tiny_encoder("digits", name=name)
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (30, 61), (17, 9)]
    images = [torch.from_numpy(rng.integers(0, 256, (1, *s), dtype=np.uint8)) for s in shapes]
    config = MaskCut(tau=0.2, masks=2, size=50)  # 12 patches of 4 pixels a side
    found = segment(encoder, images, config)
    for masks, shape in zip(found, shapes, strict=True):
        assert masks.shape[1:] == shape
        assert len(masks) <= 2
        assert masks.any((1, 2)).all()
        assert masks.sum(0).max(initial=0) <= 1
    again = segment(encoder, images, config)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


class Flat(Backbone):
    """A backbone without tokens."""

    embed_dim, in_chans, img_size = 4, 1, 8

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward_packed(self, images, draws=None):
        return [Features(x.flatten(1)[:, :4] * self.weight, None) for x in images]


def test_what_does_not_fit_is_refused_by_name():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    flat = Encoder(Flat(), Preprocess(8, 8, (0.0,), (1.0,)), {"backbone": "flat"})
    with pytest.raises(ValueError, match="maskcut: backbone flat has no tokens"):
        segment(flat, [image])
    encoder = tiny_encoder("digits")
    with pytest.raises(ValueError, match="size is 7 pixels, fewer than two patches of 4"):
        segment(encoder, [image], MaskCut(size=7))
    with pytest.raises(ValueError, match="an image has 3 channels, the encoder 1"):
        segment(encoder, [image.expand(3, -1, -1)], MaskCut(size=28))
    with pytest.raises(ValueError, match="1 x 3 patches; it needs at least 4"):
        discover(torch.ones(1, 3, 2), 0.15, 3)
    for wrong in [{"tau": 1.0}, {"tau": -0.1}, {"masks": 0}, {"size": 0}]:
        with pytest.raises(ValueError, match=f"maskcut: {next(iter(wrong))} is"):
            MaskCut(**wrong)


def test_the_figure_is_the_same_picture_each_time(tmp_path):
    encoder = tiny_encoder("digits", channels=3)
    images = [torch.from_numpy(make_scene(i).image[:, :200]) for i in range(2)]
    config = MaskCut(size=56)
    first = maskcut_figure(encoder, images, tmp_path / "a.png", config).read_bytes()
    assert first == maskcut_figure(encoder, images, tmp_path / "b.png", config).read_bytes()


def test_an_annotated_object_has_the_colour_of_the_one_that_found_it(tmp_path):
    images = [torch.full((1, 288, 288), 128, dtype=torch.uint8)]
    masks = np.zeros((3, 288, 288), dtype=bool)
    masks[0, 20:80, 20:80] = masks[1, 150:250, 150:250] = masks[2, 20:80, 200:280] = True
    found, truth = masks[:2], masks[[1, 0, 2]]
    pairs = partners(truth, found)
    assert pairs == [1, 0, None]
    path = overlays_figure(images, [found], tmp_path / "o.png", [truth], [pairs])
    drawn = np.asarray(Image.open(path))
    found, annotated = (drawn[top : top + 288, 110:398, :3] for top in (324, 648))
    colours = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS]
    edges = [(20, 50), (150, 200), (20, 240)]
    assert [found[e].tolist() for e in edges[:2]] == colours[:2]
    assert [annotated[e].tolist() for e in edges] == [*colours[:2], [255, 255, 255]]


def test_what_is_not_masked_is_darker_and_nothing_else_changes():
    picture = np.full((20, 20, 3), 0.5)
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 5:15, 5:15] = True
    drawn = overlay(picture, mask)
    assert (drawn[:2] < 0.5).all()
    assert (drawn[9, 9] != 0.5).any()
    np.testing.assert_array_equal(overlay(picture, mask[:0]), picture)


class Scripted:
    """A solver that gives prepared cuts, one a pass, and keeps the graphs it saw."""

    def __init__(self, *vectors):
        self.vectors, self.graphs = list(vectors), []

    def __call__(self, graph):
        self.graphs.append(graph)
        vector = torch.from_numpy(self.vectors[len(self.graphs) - 1].ravel()).double()
        return normalised_cut.Eigenvector(vector, 0.5, 0)


def block(rows, columns, side=20):
    vector = np.full((side, side), -0.01)
    vector[rows, columns] = 1.0
    return vector


def test_a_dropped_mask_leaves_zeros_and_the_next_pass_keeps_it():
    """The masks have the areas that CutLER's maskcut_forward gives: [100, 0, 40]."""
    first, again = block(slice(5, 15), slice(5, 15)), block(slice(5, 15), slice(5, 19))
    solve = Scripted(first, again, again)
    masks = discover(torch.ones(20, 20, 3), 0.15, 3, solve)
    assert [int(mask.sum()) for mask in masks] == [100, 40]
    assert torch.equal(solve.graphs[1], solve.graphs[2])  # a dropped mask takes nothing away
    assert not torch.equal(solve.graphs[0], solve.graphs[1])


def test_the_least_area_is_that_of_the_mask_before_earlier_ones_are_removed():
    first, other = block(slice(5, 15), slice(5, 15)), block(slice(13, 16), slice(14, 17))
    masks = discover(torch.ones(20, 20, 3), 0.15, 2, Scripted(first, other))
    assert [int(mask.sum()) for mask in masks] == [100, 7]
    small = block(slice(17, 19), slice(17, 19))  # 4 of 400 patches, 1 %
    masks = discover(torch.ones(20, 20, 3), 0.15, 3, Scripted(first, small, small))
    assert [int(mask.sum()) for mask in masks] == [100]
