"""What the layers of a backbone do to the tokens of an image. Needs no labels.

CRATE's layers unroll the objective R(Z) - R^c(Z | U) - λ‖Z‖₀ (Yu et al. 2023, arXiv:2306.01129):
attention is to lower R^c, the token-wise operator to make Z sparse. Here these terms are measured
on any backbone. As in the official visualiser (Ma-Lab/CRATE 674408f, vis_utils), Z is all tokens of
one image, class token and registers included, every measure is of one image, and the rates are of
unit vectors, so that they tell directions apart and not lengths.

Departures from the visualiser: ε is squared as in the book (its eps of 0.01 is ε = 0.1 here); R and
R^c are of the tokens themselves, where it takes R^c of LayerNorm's output alone; R^c is measured
after the attention too, which is what the paper names in its figure.

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
TOGETHER = 2**18  # pixels whose tokens of all layers are held at a time: 5 images of 224 × 224

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
    """The measures of every layer, in order, ready for JSON.

    Args:
        images: uint8 [C, H, W], as a source gives them.

    Returns:
        a dict per layer. "layer": its name. "rate_before", "rate_half", "rate_after": R(Z), in
        nats, of the tokens that enter it, after its attention, and after its token-wise operator.
        "compression_before", "compression_half": R^c(Z | U) for its own U, of the tokens that enter
        it and after its attention. "nonzero": the share of entries of Z other than 0 after it. All
        of these are {"mean", "std"} over the images. "coherence": of its subspaces, {"mean", "max"}
        over the pairs of heads. None where a layer has no such thing: no halves, no subspaces, one
        head. What enters the first layer is known of a `TokenBackbone` only; what enters a stage of
        feature maps of another size is not known.

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
            states, entering = _look(encoder.backbone, pixels.to(encoder.device))
            batches.append(_measures(states, entering))
        coherences = [None if s.bases is None else coherence(s.bases) for s in states]
    return [
        {"layer": state.name, **_over_images(parts), "coherence": overlap}
        for state, overlap, *parts in zip(states, coherences, *batches, strict=True)
    ]


def rate(vectors: Float[Tensor, "V N D"]) -> Float[Tensor, " V"]:
    """R(Z) = ½ log det(I + D/(N ε²) Zᵀ Z) of the directions of N vectors, in nats.

    Between ½ log(1 + D/ε²), where all point the same way, and min(N, D)/2 · log(1 + s), where they
    are spread evenly: s = D/(N ε²) with N <= D, else 1/ε². Zero vectors stay zero. Computed in
    float64.
    """
    return coding_rate(F.normalize(vectors.double(), dim=-1), EPS)


def compression(
    tokens: Float[Tensor, "B N D"], bases: Float[Tensor, "h D p"]
) -> Float[Tensor, " B"]:
    """R^c(Z | U) = Σ_k R(Z U_k): the room that tokens take within each subspace, in nats.

    `rate` makes the projections unit vectors: the scale of U_k does not count, and neither does how
    much of a token lies within the subspace.
    """
    projected_BhNp = torch.einsum("bnd,hdp->bhnp", tokens.double(), bases.double())
    return rate(projected_BhNp.flatten(0, 1)).unflatten(0, (len(tokens), -1)).sum(1)


def nonzero(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, " B"]:
    """‖Z‖₀ / (N D): the share of entries that are not exactly 0."""
    return (tokens != 0).flatten(1).double().mean(1)


def affinities(bases: Float[Tensor, "h D p"]) -> Float[Tensor, "h h"]:
    """‖Q_kᵀ Q_l‖_F / √p of every two subspaces, Q_k an orthonormal basis of U_k's columns.

    The root mean square cosine of their principal angles (the normalised affinity of Soltanolkotabi
    and Candès 2012): 0 where they are orthogonal, 1 where they are the same, about √(p/D) for
    subspaces at random. CRATE's paper shows the entries of U_kᵀ U_l as a picture; these depend on
    the choice of basis within a subspace, this does not. Where U_k has a lower rank, p is the
    smaller of the two ranks, and the affinity with a U_k of zeros is 0.
    """
    left_hDp, sigma_hp, _ = torch.linalg.svd(bases.double(), full_matrices=False)
    held_hp = sigma_hp > 1e-6 * sigma_hp[:, :1]  # not the rounding of float32 weights
    basis_hDp = left_hDp * held_hp[:, None]
    cosines_hh = torch.einsum("kdp,ldq->klpq", basis_hDp, basis_hDp).square().sum((-2, -1))
    rank_h = held_hp.sum(-1)
    smaller_hh = torch.minimum(rank_h[:, None], rank_h[None]).clamp(min=1)
    return (cosines_hh / smaller_hh).sqrt().clamp(max=1)


def coherence(bases: Float[Tensor, "h D p"]) -> dict[str, float] | None:
    """The mean and the largest affinity of two different subspaces; None if there is but one."""
    h = len(bases)
    if h < 2:
        return None
    pairs = affinities(bases)[~torch.eye(h, dtype=torch.bool, device=bases.device)]
    return {"mean": float(pairs.mean()), "max": float(pairs.max())}


def _look(backbone: Backbone, pixels_BCSS: Tensor) -> tuple[list[LayerState], Tensor | None]:
    """The layers' states, and the tokens that enter the first of them."""
    states, entering = backbone.layer_states(pixels_BCSS), None
    if isinstance(backbone, TokenBackbone):
        # The class token comes first, and is not always among the layers' tokens (ToST).
        entering = backbone.embed(pixels_BCSS)[:, -states[0].after.shape[1] :]
    for state in states:
        if not state.after.isfinite().all():
            raise ValueError(
                f"xray: the tokens after {state.name} are not finite; the weights are damaged, or "
                "training has diverged"
            )
    return states, entering


def _measures(states: list[LayerState], entering: Tensor | None) -> list[dict[str, Tensor]]:
    """For each layer, measure -> its values [B]."""
    before_BND, rows = entering, []
    rate_B = None if entering is None else rate(entering)
    for state in states:
        row: dict[str, Tensor] = {}
        # Between two stages of maps, tokens are merged: those before are not this layer's.
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
    """Mean and standard deviation over the images of all batches."""
    spread: dict[str, dict[str, float] | None] = {}
    for name in OVER_IMAGES:
        values = [part[name].double() for part in parts if name in part]
        spread[name] = None
        if values:
            all_images = torch.cat(values)
            std = float(all_images.std(correction=0))
            spread[name] = {"mean": float(all_images.mean()), "std": std}
    return spread
