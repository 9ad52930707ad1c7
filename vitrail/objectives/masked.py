"""Functions that MAE and CRATE-MAE share: hiding patches, targets, and figures of reconstructions.

Shape legend: B images · C channels · S pixels a side · P patch size in pixels · N patches of an
image · K = P² C values of a patch · G×G the grid of learned positions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.backbones.contract import Backbone, MaskableBackbone
from vitrail.backbones.decoder import patchify, sincos_positions, unpatchify
from vitrail.data.contract import Batch
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.masking import count_visible, patch_statistics
from vitrail.nn.random import Draws
from vitrail.objectives.contract import Pictures

SHOWN = 8  # images of a batch in a figure
COLUMNS = ("image", "visible", "reconstruction", "with the visible")
GREY = 0.5  # the value of hidden patches in a figure

# images [B C S S], draws -> class token [B D], prediction [B N K], mask of hidden patches [B N]
Reconstruct = Callable[[Tensor, Draws], tuple[Tensor, Tensor, Tensor]]


def require_ratio(name: str, mask_ratio: float) -> None:
    """Raises ValueError for a mask ratio that hides all patches or none."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"{name}: mask_ratio is {mask_ratio}; it must be above 0 and below 1")


def maskable(name: str, backbone: Backbone) -> MaskableBackbone:
    """Returns the backbone; raises ValueError if its patches cannot be hidden."""
    if isinstance(backbone, MaskableBackbone):
        return backbone
    raise ValueError(
        f"The objective {name!r} hides patches, and the backbone "
        f"{backbone.config['name']!r} mixes their pixels before its layers, or has no tokens; "
        "choose one whose patches are embedded one by one (vit, crate, crate_alpha, tost_vit, aot)"
    )


def require_patches(
    name: str, backbone: MaskableBackbone, size: int, mask_ratio: float, norm_pix: bool
) -> None:
    """Raises ValueError if views of `size` pixels leave nothing to see, hide or normalise."""
    count = (size // backbone.patch_size) ** 2
    visible = count_visible(count, mask_ratio)
    if not 0 < visible < count:
        raise ValueError(
            f"{name}: mask_ratio {mask_ratio} leaves {visible} of {count} patches visible; at "
            "least one must be visible and one hidden: choose another ratio, or smaller patches"
        )
    if norm_pix and backbone.patch_size**2 * backbone.in_chans < 2:
        raise ValueError(
            f"{name}: norm_pix needs patches of several values, and these have one; turn it off, "
            "or choose larger patches"
        )


@torch.no_grad()
def fix_positions(backbone: MaskableBackbone) -> None:
    """Gives the backbone MAE's fixed sine-cosine positions (the class token's are zero)."""
    grid = (backbone.grid, backbone.grid)
    backbone.pos_embed.copy_(sincos_positions(backbone.embed_dim, grid))
    backbone.pos_embed.requires_grad_(False)


def targets(
    images: Float[Tensor, "B C S S"], patch_size: int, norm_pix: bool
) -> Float[Tensor, "B N K"]:
    """Returns the pixels of every patch, the target; with `norm_pix`, normalised within it."""
    patches_BNK = patchify(images, patch_size)
    if not norm_pix:
        return patches_BNK
    mean_BN1, std_BN1 = patch_statistics(patches_BNK)
    return (patches_BNK - mean_BN1) / std_BN1


@torch.no_grad()
def pictures(
    batch: Batch, reconstruct: Reconstruct, plan: ViewPlan, patch_size: int, norm_pix: bool
) -> dict[str, Pictures]:
    """Returns `reconstructions` of the batch's first images, with patches hidden as in training."""
    images = batch.views[0][:SHOWN]
    _, predicted_BNK, hidden_BN = reconstruct(images, batch.draws.narrow(0, len(images)))
    return reconstructions(images, predicted_BNK, hidden_BN, plan, patch_size, norm_pix)


def reconstructions(
    images: Float[Tensor, "B C S S"],
    predicted: Float[Tensor, "B N K"],
    hidden: Bool[Tensor, "B N"],
    plan: ViewPlan,
    patch_size: int,
    norm_pix: bool,
) -> dict[str, Pictures]:
    """Returns a figure: images, visible patches, predictions, and predictions among the visible.

    With `norm_pix` a prediction gets the mean and deviation of the true patch, as in MAE's own
    figures: the brightness and contrast of hidden patches are then given, not predicted.
    """
    true_BNK, predicted_BNK = patchify(images, patch_size), predicted
    if norm_pix:
        mean_BN1, std_BN1 = patch_statistics(true_BNK)
        predicted_BNK = predicted * std_BN1 + mean_BN1
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    std, mean = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (plan.std, plan.mean)
    )

    def pixels(patches_BNK: Tensor) -> Tensor:
        return (unpatchify(patches_BNK, grid, patch_size) * std + mean).clamp(0, 1)

    is_hidden = unpatchify(hidden.unsqueeze(-1).expand_as(true_BNK).float(), grid, patch_size) > 0
    pictures = (
        pixels(true_BNK),
        pixels(true_BNK).masked_fill(is_hidden, GREY),
        pixels(predicted_BNK),
        pixels(torch.where(hidden.unsqueeze(-1), predicted_BNK, true_BNK)),
    )
    return {"reconstruction": Pictures(COLUMNS, torch.stack(pictures, dim=1))}
