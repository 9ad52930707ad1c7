import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evals.synthetic_runs import image_folder, tiny_encoder
from vitrail.backbones.contract import Backbone, Features, LayerState
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.evaluate import evaluate
from vitrail.evals.figures.layers import layers_figure, layers_table
from vitrail.evals.xray import (
    EPS,
    OVER_IMAGES,
    affinities,
    coherence,
    compression,
    nonzero,
    rate,
    xray,
)
from vitrail.reporting.build import build_report

NANO = [
    name
    for name in BACKBONES
    if name.endswith("_nano_patch4_28") or name.startswith(("resnet18", "swin_tiny"))
]
OF_PATCHES = [name for name in NANO if name.startswith("tost_nano")]  # no class token in layers
WITH_SUBSPACES = ("crate", "tost", "aot_mssa")


def vectors(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def orthonormal(d, seed=0):
    return torch.linalg.qr(vectors(d, d, seed=seed))[0]


def rate_of(z_ND):
    """½ log det(I + d/(n ε²) Σ z zᵀ) of unit vectors, in its d × d form."""
    n, d = z_ND.shape
    units_ND = z_ND / z_ND.norm(dim=1, keepdim=True)
    second = (units_ND[:, :, None] * units_ND[:, None, :]).sum(0)
    return 0.5 * torch.linalg.slogdet(torch.eye(d) + d / (n * EPS**2) * second)[1]


@pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5), (7, 7), (1, 4)])
def test_the_rate_is_the_formulas(n, d):
    z = vectors(3, n, d) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    expected = torch.stack([rate_of(x) for x in z])
    torch.testing.assert_close(rate(z).double(), expected, rtol=1e-6, atol=0)


def test_the_rate_lies_between_one_direction_and_all():
    d, n = 16, 6
    same = vectors(1, 1, d).expand(1, n, d) * torch.linspace(-2, 2, n)[:, None]
    assert rate(same).item() == pytest.approx(0.5 * math.log1p(d / EPS**2))
    few, many = orthonormal(d)[None, :n], torch.cat([orthonormal(d), orthonormal(d, 1)])[None]
    assert rate(few).item() == pytest.approx(n / 2 * math.log1p(d / (n * EPS**2)))
    assert rate(many).item() == pytest.approx(d / 2 * math.log1p(1 / EPS**2))
    assert rate(torch.zeros(1, n, d)).item() == 0
    with_zeros = torch.cat([few, torch.zeros(1, 3, d)], dim=1)  # nine vectors, six of them count
    assert rate(with_zeros).item() == pytest.approx(n / 2 * math.log1p(d / (9 * EPS**2)))


@pytest.mark.parametrize(("n", "h", "p"), [(9, 2, 3), (2, 4, 3), (6, 1, 5)])
def test_the_compression_term_is_a_sum_over_heads(n, h, p):
    tokens, bases = vectors(3, n, 12), vectors(h, 12, p, seed=1)
    expected = torch.stack([sum(rate_of(z @ u) for u in bases) for z in tokens])
    found = compression(tokens.float(), bases.float()).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        compression(tokens, 100 * bases).double(), expected, rtol=1e-6, atol=0
    )


def test_nonzero_counts_entries():
    z = torch.zeros(2, 3, 4)
    z[0, 1, 2] = -1e-30
    z[1, :, :3] = 2.0
    assert nonzero(z).tolist() == [1 / 12, 9 / 12]


def test_affinities_are_root_mean_square_cosines_of_principal_angles():
    bases = vectors(3, 10, 4) * 5
    q = [torch.linalg.qr(u)[0] for u in bases]
    found = affinities(bases)
    for k in range(3):
        for m in range(3):
            cosines = torch.linalg.svdvals(q[k].T @ q[m])
            assert found[k, m].item() == pytest.approx(cosines.square().mean().sqrt().item())


def test_coherence_of_orthogonal_equal_and_one_subspaces():
    whole = orthonormal(12)
    apart = whole.unflatten(1, (3, 4)).transpose(0, 1)
    assert coherence(apart) == pytest.approx({"mean": 0, "max": 0}, abs=1e-12)
    # The same subspace by other bases, turned and stretched.
    equal = torch.stack([apart[0], apart[0] @ vectors(4, 4), -3 * apart[0]])
    assert coherence(equal) == pytest.approx({"mean": 1, "max": 1})
    one_pair = torch.stack([apart[0], apart[1], apart[0] @ vectors(4, 4)])
    assert coherence(one_pair) == pytest.approx({"mean": 1 / 3, "max": 1})
    assert coherence(apart[:1]) is None


def test_a_subspace_of_lower_rank_is_what_it_spans():
    whole = orthonormal(8)
    line = torch.stack([whole[:, 0], -2 * whole[:, 0]], dim=1)  # of rank 1, within the plane
    plane, elsewhere = whole[:, :2], whole[:, 2:4]
    found = affinities(torch.stack([line, plane, elsewhere, torch.zeros(8, 2)]).float())
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 1
    expected[3, 3] = 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def encoder_of(backbone, size=28):
    channels = backbone.in_chans
    return Encoder(backbone, Preprocess(size, size, (0.5,) * channels, (0.25,) * channels), {})


def noise(n, channels=1, size=28):
    rng = np.random.default_rng(0)
    shape = (n, channels, size, size)
    return list(torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)))


@pytest.mark.parametrize("name", NANO)
def test_every_backbone_is_seen_through(name, tmp_path):
    size = 28 if name.endswith("_28") else 64
    backbone = create_backbone(name, img_size=size, in_chans=1)
    images = noise(3, size=size)
    layers = xray(encoder_of(backbone, size), images)
    with torch.inference_mode():
        states = backbone.eval().layer_states(encoder_of(backbone, size).preprocess(images))
    assert [layer["layer"] for layer in layers] == [state.name for state in states]
    for layer, state in zip(layers, states, strict=True):
        one_by_one = [rate_of(z.double()) for z in state.after]
        assert layer["rate_after"]["mean"] == pytest.approx(np.mean(one_by_one), rel=1e-5)
        assert layer["rate_after"]["std"] == pytest.approx(np.std(one_by_one), abs=1e-4)
        assert (layer["rate_half"] is None) == (state.half is None)
        seen = layer["compression_half"], layer["compression_before"], layer["coherence"]
        assert all(value is not None for value in seen) == name.startswith(WITH_SUBSPACES)
    written = json.loads(json.dumps(layers, allow_nan=False))
    both = {"untrained": written, "trained": written}
    drawn = np.asarray(Image.open(layers_figure(both, tmp_path / "x.png")))
    assert len(np.unique(drawn.view(np.uint32))) > 50
    assert layers_table({"images": 3, **both}).row_count == len(states)


@pytest.mark.parametrize("name", ["crate_nano_patch4_28", *OF_PATCHES])
def test_what_enters_a_layer_is_what_left_the_one_before(name):
    backbone = create_backbone(name, img_size=28, in_chans=1).eval()
    images = noise(2)
    layers = xray(encoder_of(backbone), images)
    pixels = encoder_of(backbone).preprocess(images)
    with torch.inference_mode():
        embedded, states = backbone.embed(pixels), backbone.layer_states(pixels)
    if name in OF_PATCHES:
        embedded = embedded[:, 1:]
    for layer, before, state in zip(
        layers, [embedded, *(s.after for s in states)], states, strict=False
    ):
        bases = state.bases.detach()
        for when, z in (("before", before), ("half", state.half)):
            heads = [sum(rate_of((x @ u).double()) for u in bases) for x in z]
            assert layer[f"compression_{when}"]["mean"] == pytest.approx(np.mean(heads), rel=1e-4)
            whole = np.mean([rate_of(x.double()) for x in z])
            assert layer[f"rate_{when}"]["mean"] == pytest.approx(whole, rel=1e-5)


def test_ista_makes_tokens_sparse_and_an_mlp_does_not():
    crate, vit = (
        xray(encoder_of(create_backbone(f"{name}_nano_patch4_28", in_chans=1)), noise(2))
        for name in ("crate", "vit")
    )
    assert all(layer["nonzero"]["mean"] < 0.7 for layer in crate)
    assert all(layer["nonzero"]["mean"] == 1 for layer in vit)


def test_batches_do_not_change_the_numbers(monkeypatch):
    encoder = encoder_of(create_backbone("crate_nano_patch4_28", in_chans=1))
    together = xray(encoder, noise(5))
    monkeypatch.setattr("vitrail.evals.xray.TOGETHER", 2 * 28**2)
    for a, b in zip(together, xray(encoder, noise(5)), strict=True):
        for name in OVER_IMAGES:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5)


class Maps(Backbone):
    """A backbone of feature maps of two sizes, without halves or subspaces."""

    embed_dim, in_chans, img_size = 6, 1, 28

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward_packed(self, images, draws=None):
        return [Features(x.flatten(1)[:, :6], None) for x in images]

    def layer_states(self, images):
        cells = images.flatten(1) * self.weight
        shapes = {"stage1.0": (49, 3), "stage1.1": (49, 3), "stage2.0": (12, 6)}
        return [
            LayerState(name, None, cells[:, : n * d].unflatten(1, (n, d)).relu(), None)
            for name, (n, d) in shapes.items()
        ]


def test_a_backbone_without_halves_and_subspaces(tmp_path):
    layers = xray(encoder_of(Maps()), noise(2))
    first, second, merged = layers
    assert first["rate_before"] is merged["rate_before"] is None
    assert second["rate_before"] == first["rate_after"]
    for name in ("rate_half", "compression_before", "compression_half", "coherence"):
        assert first[name] is second[name] is None
    assert 0.3 < first["nonzero"]["mean"] < 0.7
    layers_figure({"untrained": layers, "trained": layers}, tmp_path / "x.png")
    shown = [column.header for column in layers_table({"images": 2, "trained": layers}).columns]
    assert shown == ["layer", "R", "nonzero, %"]


def test_what_cannot_be_measured_is_refused():
    backbone = create_backbone("vit_nano_patch4_28", in_chans=1)
    with pytest.raises(ValueError, match="no image"):
        xray(encoder_of(backbone), [])
    with torch.no_grad():
        backbone.blocks[1].mlp.fc2.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"after blocks\.1 are not finite"):
        xray(encoder_of(backbone), noise(1))


def test_the_mode_of_the_backbone_comes_back():
    backbone = create_backbone("vit_nano_patch4_28", in_chans=1).train()
    xray(encoder_of(backbone), noise(1))
    assert backbone.training


def test_a_run_is_measured_drawn_and_reported(tmp_path, capsys):
    image_folder(tmp_path / "data", each=10)
    encoder = tiny_encoder(f"folder:{tmp_path / 'data'}", channels=3, name="crate_nano_patch4_28")
    with torch.no_grad():
        encoder.backbone.blocks[1].attn.qkv.weight[:8] = encoder.backbone.blocks[1].attn.qkv.weight[
            8:
        ]
    encoder.save(tmp_path / "run")
    results = evaluate(tmp_path / "run", protocols=["xray"])
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())["xray"]
    assert measured == results["xray"]
    assert (measured["images"], measured["eps"]) == (4, EPS)
    assert measured["untrained"][0] == measured["trained"][0]
    assert measured["trained"][1]["coherence"]["max"] == pytest.approx(1)
    assert measured["untrained"][1]["coherence"]["max"] < 0.9
    assert results["figures"] == {"xray": "figures/xray.png"}
    printed = capsys.readouterr().out
    assert "blocks.1" in printed
    assert "accuracy" not in printed
    page = build_report(tmp_path / "run").read_text()
    assert "Layer by layer" in page
    assert 'alt="Layer by layer: curves over the layers' in page
