"""CLIP: its loss in float64 from the paper's pseudocode, and transformers'; what it keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.objectives.tiny import (
    CAPTIONS,
    HORIZON,
    build,
    in_float64,
    make_backbone,
    make_batch,
    narrow,
)
from tests.rounding import EXACT, float64_kept
from vitrail.backbones.joint import KINDS, JointSpace
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives import clip
from vitrail.objectives.build import build_objective

TINY = clip.Config(
    views=RandomResizedCrop(size=16),
    embed_dim=16,
    text_width=16,
    text_depth=1,
    text_heads=2,
    vocabulary=300,
    context=12,
)
VARIANTS = {"bidirectional": replace(TINY, text="bidirectional")}


def unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 16, dtype=torch.float64, generator=generator), dim=1)


def paper(image: np.ndarray, text: np.ndarray, scale: float) -> float:
    """Radford et al. 2021, Figure 3, each cross-entropy as minus the log of a share."""
    logits = image @ text.T * scale
    shares = np.exp(logits)
    own = np.diag(shares)
    rows = -np.log(own / shares.sum(axis=1))
    columns = -np.log(own / shares.sum(axis=0))
    return float((rows.mean() + columns.mean()) / 2)


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
def test_the_loss_is_the_papers(scale):
    image, text = unit_rows(9, 0), unit_rows(9, 1)
    factor = torch.tensor(scale, dtype=torch.float64)
    loss, _ = clip.info_nce(image, text, factor, torch.arange(9))
    expected = paper(image.numpy(), text.numpy(), scale)
    assert loss.item() == pytest.approx(expected, rel=EXACT["rtol"])


def test_the_loss_is_that_of_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    image, text = unit_rows(7, 2), unit_rows(7, 3)
    loss, found = clip.info_nce(image, text, torch.tensor(20.0), torch.arange(7))
    assert loss.item() == pytest.approx(
        image_text_contrastive_loss(20.0 * text @ image.T).item(), rel=EXACT["rtol"]
    )
    nearest = (image @ text.T).argmax(1) == torch.arange(7)
    assert found.item() == pytest.approx(nearest.float().mean().item())


def test_a_pair_that_comes_twice_is_no_negative_of_itself():
    image, text = unit_rows(5, 4), unit_rows(5, 5)
    image[3], text[3] = image[0], text[0]
    index = torch.tensor([7, 1, 2, 7, 4])
    loss, _ = clip.info_nce(image, text, torch.tensor(10.0), index)
    terms = []
    for row in range(5):
        others = [c for c in range(5) if c == row or index[c] != index[row]]
        for logits in (10 * image[row] @ text.T, 10 * text[row] @ image.T):
            terms.append(logits[others].logsumexp(0) - logits[row])
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=EXACT["rtol"])


def test_another_vocabulary_than_the_checkpoints_is_told():
    first = build(TINY)
    other = build_objective(TINY, make_backbone(), HORIZON, captions=["zebra zoo"] * 9)
    with pytest.raises(ValueError, match="the release that the run began with"):
        other.load_state_dict(first.state_dict())


@float64_kept()
def test_forward_is_towers_then_loss():
    objective = build(TINY).double()
    batch = in_float64(make_batch(objective.views(), 6))
    out = objective(batch, 0)
    pooled = objective.backbone(batch.views[0]).pooled
    ids = objective.tokenizer.encode(CAPTIONS[:6], 12)
    with torch.no_grad():
        image = normalize(pooled @ objective.space.image_projection.weight.T)
        # One caption at a time: none may know what it is in a batch with.
        last = torch.cat([objective.space.text(torch.tensor([i]))[:, -1] for i in ids])
        text = normalize(last @ objective.space.text_projection.weight.T)
    # The temperature was written down in float32.
    expected = paper(image.numpy(), text.numpy(), objective.log_scale.exp().item())
    assert out["loss"].item() == pytest.approx(expected, rel=EXACT["rtol"])
    assert out["temperature"].item() == pytest.approx(0.07)


def test_the_temperature_stays_within_its_bounds():
    objective = build(TINY)
    for value, kept in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        objective.log_scale.data.fill_(value)
        objective.after_step({}, 0)
        assert objective.log_scale.item() == pytest.approx(kept)


def test_a_checkpoint_brings_its_own_tokenizer():
    first = build(TINY)
    state = first.state_dict()
    torch.manual_seed(0)
    # As from another release of the library: as many tokens, learned otherwise.
    captions = [
        caption.translate(str.maketrans("abcdehlnorstuv", "bcdefgijklmpqw")) for caption in CAPTIONS
    ]
    other = build_objective(TINY, make_backbone(), HORIZON, captions=captions)
    assert other.tokenizer.encode(CAPTIONS[:4], 12) != first.tokenizer.encode(CAPTIONS[:4], 12)
    other.load_state_dict(state)
    assert other.tokenizer.encode(CAPTIONS[:4], 12) == first.tokenizer.encode(CAPTIONS[:4], 12)
    assert other.tokenizer.to_json() == first.tokenizer.to_json()


def test_negatives_are_those_of_the_whole_batch():
    objective = build(TINY)
    batch = make_batch(objective.views(), 8)
    whole = objective(batch, 0)["loss"].item()
    halves = [objective(narrow(batch, start, 4), 0)["loss"].item() for start in (0, 4)]
    assert abs(whole - sum(halves) / 2) > 0.1  # which is why accumulation is refused
    assert objective.batch_coupled
    assert objective.min_batch_size == 2


def test_what_a_token_sees():
    sequences = [[3, 5, 7, 9], [3, 5, 7]]
    for kind in KINDS:
        torch.manual_seed(0)
        space = JointSpace(
            8, 4, kind=kind, width=8, depth=2, heads=2, vocabulary=12, context=6
        ).double()
        states = [space.text(torch.tensor([ids])) for ids in sequences]
        change = (states[0][:, :3] - states[1]).abs().max()
        assert (change < 1e-12) == (kind == "causal")
        packed = space.text.last(sequences)
        alone = torch.cat([state[:, -1] for state in states])
        torch.testing.assert_close(packed, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", 0),
        ("text_depth", 0),
        ("text_heads", 3),
        ("context", 2),
        ("temperature", 0.001),
        ("temperature", 2.0),
    ],
)
def test_a_field_out_of_range_is_named(field, value):
    named = "text_width" if field == "text_heads" else field
    with pytest.raises(ValueError, match=f"clip: {named} is"):
        replace(TINY, **{field: value})


def test_a_source_without_captions_is_refused():
    with pytest.raises(ValueError, match="'clip' needs captions"):
        build_objective(TINY, make_backbone(), HORIZON)


def test_captions_of_strange_signs_and_lengths_train():
    objective = build(TINY)
    texts = ("", "žluťoučký kůň 🐎", "<end> <start>", "word " * 500)
    batch = replace(make_batch(objective.views(), 4), text=texts)
    out = objective(batch, 0)
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


@float64_kept()
def test_captions_of_one_image_are_not_each_others_negatives():
    """Samples 0 and 2 are captions of one image; 1 and 3 are of others."""
    pictures = torch.tensor([5, 1, 5, 2])
    losses = {}
    for choice in ("left_out", "negatives"):
        torch.manual_seed(0)
        config = replace(TINY, same_image=choice)
        args = (make_backbone(), HORIZON, None, 4, CAPTIONS[:4], pictures)
        objective = build_objective(config, *args).double()
        batch = in_float64(make_batch(objective.views(), 4))
        out = objective(batch, 0)
        losses[choice] = out["loss"].item()
        image = out["embedding"]
        text = objective.space.captions(objective.tokenizer.encode(CAPTIONS[:4], 12)).detach()
        scale, terms = objective.log_scale.exp().detach(), []
        for row in range(4):
            others = [
                c
                for c in range(4)
                if c == row or choice == "negatives" or pictures[c] != pictures[row]
            ]
            for logits in (scale * image[row] @ text.T, scale * text[row] @ image.T):
                terms.append(logits[others].logsumexp(0) - logits[row])
        assert losses[choice] == pytest.approx(torch.stack(terms).mean().item(), rel=EXACT["rtol"])
    assert losses["left_out"] < losses["negatives"]
