"""MaskCut: finds objects of an image by successive normalised cuts, without training or labels.

Source: Wang et al. 2023 (CutLER, arXiv:2301.11320), section 3.2; facebookresearch/CutLER cca0a27,
`maskcut/maskcut.py`. Departures:

- The sign of an eigenvector is arbitrary, and the published test of the corners depends on it: here
  the entry of largest magnitude, the seed, is made positive first. Of entries that are equal to
  1e-6 (patches of a graph in separate parts), the first is the seed.
- An image of identical patches has no mask.
- Masks are resized to the image's own size bilinearly, in floating point, and thresholded at one
  half; the published code resizes bicubically, in 8 bits, and keeps what is above half of the
  largest value.

A pass whose mask is dropped, as it is small or the one before, takes no patch away and leaves zeros
in its place, as in the published code: the next pass then finds the same mask, compares it with
zeros, and keeps it. Masks without the patches of earlier ones may therefore be small, or empty, and
the empty ones are not returned.

The refinement (published: a dense CRF and filled holes) is an argument.

Shape legend: H×W patches · n = H·W · D features · M masks of an image · C channels · S pixels a
side of the backbone's input · y, x pixels of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vitrail.backbones.contract import TokenBackbone
from vitrail.data.views.apply import full_precision
from vitrail.encoder import Encoder, evaluating
from vitrail.evals.contract import Context
from vitrail.evals.figures.overlays import overlays_figure
from vitrail.evals.patches.normalised_cut import Eigenvector, peak, second_eigenvector
from vitrail.evals.patches.saliency import token_backbone

Solve = Callable[[Tensor], Eigenvector]
# (image uint8 [S, S, C], mask bool [S, S]) -> refined mask [S, S]
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]

SAME = 0.5  # IoU with the previous mask above which a mask is not new
LEAST_AREA = 0.01  # share of the patches above which a mask counts
LEAST_KEPT = 0.5  # IoU of a mask with its refinement below which it is dropped
ALIKE = 1 - 1e-9  # second eigenvalue from which on a graph has no cut


@dataclass(frozen=True)
class MaskCut:
    """Settings of MaskCut; the defaults are the published values.

    Attributes:
        tau: cosine similarity above which two patches are connected, in [0, 1).
        masks: largest number of masks of an image, at least 1 (N in the paper).
        size: pixels a side to which images are resized, rounded down to whole patches.
    """

    tau: float = 0.15
    masks: int = 3
    size: int = 480

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise ValueError(f"maskcut: tau is {self.tau}; it is a cosine in [0, 1)")
        if self.masks < 1:
            raise ValueError(f"maskcut: masks is {self.masks}; it must be at least 1")
        if self.size < 1:
            raise ValueError(f"maskcut: size is {self.size} pixels; it must be at least 1")


def draw_maskcut(context: Context, config: MaskCut) -> None:
    """Draws figures/maskcut.png, of a few test images."""
    images = context.images(context.pictures)
    maskcut_figure(context.encoder, images, context.figures / "maskcut.png", config)


def maskcut_figure(
    encoder: Encoder,
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]],
    path: Path,
    config: MaskCut | None = None,
) -> Path:
    """Writes a PNG with a column per image: the image, and the objects that MaskCut finds in it.

    Raises:
        ValueError: as `segment`.
    """
    return overlays_figure(images, segment(encoder, images, config), path)


def segment(
    encoder: Encoder,
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]],
    config: MaskCut | None = None,
    refine: Refine | None = None,
) -> list[Bool[np.ndarray, "_ _ _"]]:
    """Finds the objects of each image.

    Args:
        encoder: encoder with a token backbone.
        images: images with the encoder's channels, of any sizes.
        config: settings; `MaskCut()` if None.
        refine: refinement of each mask; a mask whose IoU with its refinement is below 0.5 is
            dropped.

    Returns:
        for each image masks at its own size, bool [M, y, x], with M from 0 to `config.masks`, in
        the order in which they were found; disjoint before refinement.

    Raises:
        ValueError: a backbone without tokens, or a size that holds fewer than two patches a side.
    """
    config = config or MaskCut()
    backbone = token_backbone(encoder, "maskcut")
    found = []
    for image in images:
        keys_HWD, seen_SSC = image_keys(encoder, backbone, image, config.size)
        masks_MHW = discover(keys_HWD, config.tau, config.masks)
        found.append(to_image(masks_MHW, seen_SSC, image.shape[1:], refine))
    return found


def image_keys(
    encoder: Encoder,
    backbone: TokenBackbone,
    image: UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"],
    size: int,
) -> tuple[Float[Tensor, "H W D"], UInt8[np.ndarray, "S S C"]]:
    """Returns the last layer's keys of an image resized to a square, and that square in 8 bits.

    Args:
        encoder: encoder of the backbone.
        backbone: the encoder's token backbone.
        image: image with the encoder's channels.
        size: pixels a side, rounded down to whole patches.

    Raises:
        ValueError: fewer than two patches a side, or another number of channels.
    """
    side = size // backbone.patch_size * backbone.patch_size
    if side < 2 * backbone.patch_size:
        raise ValueError(
            f"maskcut: size is {size} pixels, fewer than two patches of {backbone.patch_size} a "
            "side; make it larger"
        )
    if image.shape[0] != encoder.channels:
        raise ValueError(
            f"maskcut: an image has {image.shape[0]} channels, the encoder {encoder.channels}; "
            f"open the images with channels={encoder.channels}"
        )
    # Pillow resizes 8-bit and float images only
    white = torch.iinfo(image.dtype).max
    arrays = [plane.cpu().numpy() for plane in (image if white == 255 else image.float())]
    resized = [
        np.asarray(Image.fromarray(a).resize((side, side), Image.Resampling.LANCZOS))
        for a in arrays
    ]
    resized_SSC = np.stack(resized, -1)
    pixels_CSS = torch.from_numpy(resized_SSC).permute(2, 0, 1).to(encoder.device).float() / white
    pixels_CSS = pixels_CSS.clamp(0, 1)  # Pillow clips 8-bit images, but not float ones
    seen_SSC = (255 * pixels_CSS).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    mean, std = (
        torch.tensor(values, device=encoder.device)[:, None, None]
        for values in (encoder.preprocess.mean, encoder.preprocess.std)
    )
    with evaluating(backbone):
        keys_HWD = backbone.token_keys(((pixels_CSS - mean) / std)[None])[0]
    return keys_HWD.float(), seen_SSC


def discover(
    keys: Float[Tensor, "H W D"], tau: float, masks: int, solve: Solve = second_eigenvector
) -> Bool[np.ndarray, "M H W"]:
    """Runs MaskCut on the patch grid; a pure function of the keys.

    Args:
        keys: keys of the patches, float [H, W, D].
        tau: cosine similarity above which two patches are connected.
        masks: largest number of masks.
        solve: solver for the second eigenvector of a boolean graph [n, n].

    Returns:
        disjoint masks of patches, bool [M, H, W]; each is connected, unless an earlier mask took a
        part of it.

    Raises:
        ValueError: fewer than 4 patches.
    """
    height, width, _ = keys.shape
    if height * width < 4:
        raise ValueError(f"maskcut: {height} x {width} patches; it needs at least 4")
    graph_nn = similar(keys, tau)
    taken_HW = np.zeros((height, width), dtype=bool)
    before_HW = np.zeros_like(taken_HW)
    found: list[np.ndarray] = []
    for number in range(masks):
        cut = solve(graph_nn)
        if cut.value >= ALIKE:
            break
        object_HW = foreground(cut.vector.reshape(height, width))
        small = object_HW.mean() <= LEAST_AREA
        if number > 0 and (small or overlap(object_HW, before_HW) > SAME):
            object_HW = np.zeros_like(object_HW)
        before_HW = object_HW
        if not object_HW.any():
            continue
        found.append(object_HW & ~taken_HW)
        taken_HW |= object_HW
        # equal to zero features for taken patches: similar to nothing, not even to themselves
        free_n = ~torch.from_numpy(taken_HW.ravel()).to(graph_nn.device)
        graph_nn = graph_nn & free_n & free_n[:, None]
    kept = [mask for mask in found if mask.any()]
    return np.stack(kept) if kept else np.zeros((0, height, width), dtype=bool)


def similar(keys: Float[Tensor, "H W D"], tau: float) -> Bool[Tensor, "n n"]:
    """Returns the pairs of patches whose keys have a cosine above tau; exactly symmetric."""
    unit_nD = F.normalize(keys.flatten(0, 1).float(), dim=-1)
    with full_precision(keys.device):
        above_nn = unit_nD @ unit_nD.T > tau
    return above_nn | above_nn.T


def foreground(vector: Float[Tensor, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Returns the object of a cut.

    It is the side of the seed, or the other side if the seed's has three of the image's corners;
    of that side, the part connected to its peak (by edges of patches).

    Args:
        vector: eigenvector as a map [H, W], with its entry of largest magnitude positive.
    """
    sides_HW = (vector > vector.mean()).cpu().numpy()
    seed = peak(vector.flatten())
    if sides_HW[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        sides_HW = ~sides_HW
        lowest = -vector.flatten()
        seed = peak(lowest - lowest.min())
    parts_HW, _ = ndimage.label(sides_HW)
    return parts_HW == parts_HW.flat[seed]


def to_image(
    masks: Bool[np.ndarray, "M H W"],
    seen: UInt8[np.ndarray, "S S C"],
    size: Sequence[int],
    refine: Refine | None = None,
) -> Bool[np.ndarray, "m y x"]:
    """Resizes masks of patches to masks of the image; empty ones are dropped.

    Args:
        masks: masks of patches, bool [M, H, W].
        seen: backbone's input in 8 bits, uint8 [S, S, C].
        size: height and width of the image in pixels.
        refine: refinement of each mask, if any.

    Returns:
        masks of the image, bool [m, y, x], with m at most M.
    """
    patch = seen.shape[0] // masks.shape[1]
    pixels: list[np.ndarray] = []
    for mask_HW in masks:
        mask_SS = np.kron(mask_HW, np.ones((patch, patch), dtype=bool))
        if refine is not None:
            mask_SS = _refined(mask_SS, seen, refine)
        drawn = Image.fromarray(mask_SS.astype(np.float32))
        half = drawn.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels.append(np.asarray(half) >= 0.5)
    nonempty = [mask for mask in pixels if mask.any()]
    return np.stack(nonempty) if nonempty else np.zeros((0, *size), dtype=bool)


def _refined(
    mask_SS: Bool[np.ndarray, "S S"], seen_SSC: UInt8[np.ndarray, "S S C"], refine: Refine
) -> Bool[np.ndarray, "S S"]:
    """Returns the refined mask with its holes filled; empty if it changed too much."""
    refined_SS = ndimage.binary_fill_holes(refine(seen_SSC, mask_SS))
    if overlap(mask_SS, refined_SS) < LEAST_KEPT:
        return np.zeros_like(mask_SS)
    return refined_SS


def overlap(one: Bool[np.ndarray, "*size"], other: Bool[np.ndarray, "*size"]) -> float:
    """Returns the intersection over union of two masks; 0 if both are empty."""
    return float((one & other).sum() / max(int((one | other).sum()), 1))
