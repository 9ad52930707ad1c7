"""Measures of the tokens after each layer of a backbone: coding rates and sparsity, without labels.

CRATE's layers unroll the objective R(Z) - R^c(Z | U) - λ‖Z‖₀ (Yu et al. 2023, arXiv:2306.01129):
attention is to lower R^c, the token-wise operator to make Z sparse. Here these terms are measured
on any backbone. As in the official visualiser (Ma-Lab/CRATE 674408f, vis_utils), Z is all tokens of
one image, class token and registers included; each measure is of one image; and the rates are of
unit vectors, so they depend on the tokens' directions, not on their lengths.

Departures from the visualiser: ε is squared as in the book (its eps of 0.01 is ε = 0.1 here); R and
R^c are of the tokens themselves, while the visualiser computes R^c of LayerNorm's output; R^c is
also measured after the attention, which is the quantity of the paper's figure.

Shape legend: V independent sets · B images · C channels · S pixels a side · N tokens of an image ·
D features · h heads · p features of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone, LayerState, TokenBackbone
from vitrail.encoder import Encoder, evaluating
from vitrail.evals.contract import Context
from vitrail.evals.figures.layers import layers_figure
from vitrail.nn.coding_rate import coding_rate

EPS = 0.1  # ε, the distortion
TOGETHER = 2**18  # pixels of a batch, as tokens of all layers are in memory: 5 images of 224 × 224

OVER_IMAGES = (
    "rate_before",
    "rate_half",
    "rate_after",
    "compression_before",
    "compression_half",
    "nonzero",
)


IMAGES = 32  # of the test split, drawn


def measure_layers(context: Context) -> dict[str, Any]:
    """Measures the layers of the untrained and trained encoder, and draws figures/xray.png."""
    images = context.images(IMAGES)
    layers = {
        "untrained": xray(context.encoder.untrained(), images),
        "trained": xray(context.encoder, images),
    }
    layers_figure(layers, context.figures / "xray.png")
    return {"images": len(images), "eps": EPS, **layers}


def xray(encoder: Encoder, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Measures every layer over several images; the result can be written as JSON.

    Args:
        encoder: encoder of any backbone.
        images: uint8 [C, y, x], as a source returns them.

    Returns:
        a dict per layer, in order. "layer": its name. "rate_before", "rate_half", "rate_after":
        R(Z), in nats, of its input tokens, after its attention, and after its token-wise operator.
        "compression_before", "compression_half": R^c(Z | U) for its own U, of its input tokens and
        after its attention. "nonzero": the share of non-zero entries of Z after it. All of these
        are {"mean", "std"} over the images. "coherence": of its subspaces, {"mean", "max"} over the
        pairs of heads. A measure is None if a layer has no halves, no subspaces or a single head.
        The input of the first layer is measured for a `TokenBackbone` only; the input of a stage of
        feature maps of another size is not measured.

    Raises:
        ValueError: no images, or tokens that are not finite.
    """
    if not images:
        raise ValueError("xray: there is no image to look at")
    together = max(1, TOGETHER // encoder.preprocess.size**2)
    batches, coherences = [], []
    with evaluating(encoder.backbone):
        for start in range(0, len(images), together):
            pixels = encoder.preprocess(list(images[start : start + together]))
            states, entering = _layer_states(encoder.backbone, pixels.to(encoder.device))
            batches.append(_measures(states, entering))
        coherences = [None if s.bases is None else coherence(s.bases) for s in states]
    return [
        {"layer": state.name, **_over_images(parts), "coherence": overlap}
        for state, overlap, *parts in zip(states, coherences, *batches, strict=True)
    ]


def rate(vectors: Float[Tensor, "V N D"]) -> Float[Tensor, " V"]:
    """Returns R(Z) = ½ log det(I + D/(N ε²) Zᵀ Z) of the directions of N vectors, in nats.

    The minimum is ½ log(1 + D/ε²) for equal directions, the maximum min(N, D)/2 · log(1 + s) for
    evenly spread ones: s = D/(N ε²) with N <= D, else 1/ε². Zero vectors stay zero. Computed in
    float64.
    """
    return coding_rate(F.normalize(vectors.double(), dim=-1), EPS)


def compression(
    tokens: Float[Tensor, "B N D"], bases: Float[Tensor, "h D p"]
) -> Float[Tensor, " B"]:
    """Returns R^c(Z | U) = Σ_k R(Z U_k), the coding rate of tokens within each subspace, in nats.

    `rate` normalises the projections to unit vectors, so neither the scale of U_k nor the length of
    a token's projection matters.
    """
    projected_BhNp = torch.einsum("bnd,hdp->bhnp", tokens.double(), bases.double())
    return rate(projected_BhNp.flatten(0, 1)).unflatten(0, (len(tokens), -1)).sum(1)


def nonzero(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, " B"]:
    """Returns ‖Z‖₀ / (N D): the share of entries that are not exactly 0."""
    return (tokens != 0).flatten(1).double().mean(1)


def affinities(bases: Float[Tensor, "h D p"]) -> Float[Tensor, "h h"]:
    """Returns ‖Q_kᵀ Q_l‖_F / √p of each pair of subspaces, Q_k an orthonormal basis of U_k.

    This is the root mean square cosine of their principal angles (the normalised affinity of
    Soltanolkotabi and Candès 2012): 0 for orthogonal subspaces, 1 for equal ones, about √(p/D) for
    random ones. CRATE's paper draws the entries of U_kᵀ U_l, which depend on the choice of basis
    within a subspace; the affinity does not. If U_k has a lower rank, p is the smaller of the two
    ranks; the affinity with a U_k of zeros is 0.
    """
    left_hDp, sigma_hp, _ = torch.linalg.svd(bases.double(), full_matrices=False)
    nonzero_hp = sigma_hp > 1e-6 * sigma_hp[:, :1]  # above the rounding of float32 weights
    basis_hDp = left_hDp * nonzero_hp[:, None]
    cosines_hh = torch.einsum("kdp,ldq->klpq", basis_hDp, basis_hDp).square().sum((-2, -1))
    rank_h = nonzero_hp.sum(-1)
    smaller_hh = torch.minimum(rank_h[:, None], rank_h[None]).clamp(min=1)
    return (cosines_hh / smaller_hh).sqrt().clamp(max=1)


def coherence(bases: Float[Tensor, "h D p"]) -> dict[str, float] | None:
    """Returns the mean and largest affinity of two different subspaces; None for a single one."""
    h = len(bases)
    if h < 2:
        return None
    pairs = affinities(bases)[~torch.eye(h, dtype=torch.bool, device=bases.device)]
    return {"mean": float(pairs.mean()), "max": float(pairs.max())}


def _layer_states(
    backbone: Backbone, pixels_BCSS: Tensor
) -> tuple[list[LayerState], Tensor | None]:
    """Returns the states of the layers, and the input tokens of the first one, if known."""
    states, entering = backbone.layer_states(pixels_BCSS), None
    if isinstance(backbone, TokenBackbone):
        # the class token is first, and not always among the layers' tokens (ToST)
        entering = backbone.embed(pixels_BCSS)[:, -states[0].after.shape[1] :]
    for state in states:
        if not state.after.isfinite().all():
            raise ValueError(
                f"xray: the tokens after {state.name} are not finite; the weights are damaged, or "
                "training has diverged"
            )
    return states, entering


def _measures(states: list[LayerState], entering: Tensor | None) -> list[dict[str, Tensor]]:
    """Returns the values [B] of each measure, for each layer."""
    before_BND, rows = entering, []
    rate_B = None if entering is None else rate(entering)
    for state in states:
        row: dict[str, Tensor] = {}
        # between two stages of maps tokens are merged: the earlier ones are not this layer's input
        if before_BND is not None and before_BND.shape == state.after.shape:
            assert rate_B is not None
            row["rate_before"] = rate_B
            if state.bases is not None:
                row["compression_before"] = compression(before_BND, state.bases)
        if state.half is not None:
            row["rate_half"] = rate(state.half)
            if state.bases is not None:
                row["compression_half"] = compression(state.half, state.bases)
        before_BND, rate_B = state.after, rate(state.after)
        rows.append(row | {"rate_after": rate_B, "nonzero": nonzero(state.after)})
    return rows


def _over_images(parts: Sequence[dict[str, Tensor]]) -> dict[str, dict[str, float] | None]:
    """Returns mean and standard deviation of each measure over the images of all batches."""
    spread: dict[str, dict[str, float] | None] = {}
    for name in OVER_IMAGES:
        values = [part[name].double() for part in parts if name in part]
        spread[name] = None
        if values:
            all_images = torch.cat(values)
            std = float(all_images.std(correction=0))
            spread[name] = {"mean": float(all_images.mean()), "std": std}
    return spread
