"""From pixels to tokens: patch embeddings, and positions for any grid.

Shape legend: B images · C channels · S, s height, width in pixels · P patch size in pixels · H×W
patches · D features · G×G the grid for which positions were learned.
"""

import functools
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.nn.batch_norm import convert_batch_norms


class ConvPatchEmbed(nn.Module):
    """ViT's patch embedding: a linear map, as a convolution with timm's and DINO's keys."""

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        return self.proj(images).permute(0, 2, 3, 1)


class NormPatchEmbed(nn.Module):
    """CRATE's patch embedding: LayerNorm, linear, LayerNorm; patch vectors in order (p1 p2 c)."""

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        patch_dim = patch_size * patch_size * in_chans
        self.norm_in = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        p = self.patch_size
        split_BCHpWp = images.unflatten(3, (-1, p)).unflatten(2, (-1, p))
        patches_BHWK = split_BCHpWp.permute(0, 2, 4, 3, 5, 1).flatten(3)
        return self.norm_out(self.proj(self.norm_in(patches_BHWK)))


class ConvStem(nn.Module):
    """XCiT's embedding (El-Nouby et al. 2021): log2 P convolutions 3×3 of stride 2 with batch norm.

    GELU is between them. The last has D channels, each other half of the next. Published for P = 8
    and 16. Batch norm's statistics are of one resolution, over all ranks. As in ToST's code
    (RobinWu218/ToST 071ea98, tost_vision/tost.py), with its names.

    Args:
        patch_size: side of a patch in pixels, P, a power of two.
        in_chans: channels of the images, C.
        dim: features of a token, D, a multiple of P / 2.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        widths = [in_chans] + [dim >> k for k in reversed(range(halvings))]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            conv = nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(wide)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])
        convert_batch_norms(self)

    def forward(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        return self.proj(images).permute(0, 2, 3, 1)


def check_images(images: Float[Tensor, "B C S s"], patch_size: int, in_chans: int) -> None:
    """Raises ValueError if the channels or a side do not fit the backbone."""
    channels, *sides = images.shape[1:]
    if channels != in_chans:
        raise ValueError(
            f"the backbone was built for {in_chans} channel(s) but the images have {channels}; "
            f"build it with create_backbone(..., in_chans={channels}) or read the images with "
            f"{in_chans} channel(s)"
        )
    for side in sides:
        check_divides(side, patch_size, "view size")


def check_divides(size: int, patch_size: int, what: str) -> None:
    """Raises ValueError, with sizes that fit, if the patch does not divide the size."""
    if size > 0 and size % patch_size == 0:
        return
    below = size // patch_size * patch_size
    near = [s for s in (below, below + patch_size) if s > 0]
    patches = [p for p in range(1, size + 1) if size % p == 0]
    nearest_patch = min(patches, key=lambda p: abs(p - patch_size), default=None)
    advice = f"use a size of {' or '.join(map(str, near))}"
    if nearest_patch is not None:
        advice += f", or patch_size={nearest_patch}"
    raise ValueError(f"patch size {patch_size} does not divide the {what} {size}; {advice}")


def resize_positions(
    positions: Float[Tensor, "1 n D"],
    grid: int,
    new_grid: tuple[int, int],
    antialias: bool = True,
    offset: float = 0.1,
) -> Float[Tensor, "1 m D"]:
    """Resamples positions learned on a grid × grid of patches to H × W.

    The class token's position is unchanged. Bicubic with half-pixel centres, written as two
    products with the filters' matrices, whose gradient is deterministic on CUDA, unlike that of
    `F.interpolate`.

    Args:
        positions: n = 1 + grid², class token first, then row by row.
        grid: patches along each side, G.
        new_grid: (H, W); the result has m = 1 + H W positions.
        antialias: over the whole grid, as `timm.layers.resample_abs_pos_embed`, DINOv2 with
            registers and SimDINOv2. Otherwise as DINO and DINOv2 without registers: no
            antialiasing, and a step between samples of grid / (H + offset).
        offset: without antialiasing, added to the sides of the new grid against rounding: 0.1 in
            DINO's code, 0 in transformers.
    """
    if new_grid == (grid, grid):
        return positions
    dtype = torch.promote_types(positions.dtype, torch.float32)
    rows_HG, columns_WG = (
        torch.tensor(
            resize_matrix(grid, side, antialias, offset), device=positions.device, dtype=dtype
        )
        for side in new_grid
    )
    table_GGD = positions[0, 1:].to(dtype).unflatten(0, (grid, grid))
    with torch.autocast(positions.device.type, enabled=False):
        resized_HGD = torch.tensordot(rows_HG, table_GGD, dims=1)
        resized_HWD = torch.einsum("wg,hgd->hwd", columns_WG, resized_HGD)
    patches_1mD = resized_HWD.flatten(0, 1).unsqueeze(0).to(positions.dtype)
    return torch.cat([positions[:, :1], patches_1mD], dim=1)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int, antialias: bool = True, offset: float = 0.1) -> np.ndarray:
    """Returns the bicubic filter from `old` to `new` samples as a float64 matrix [new, old].

    The cached matrix is NumPy's: a tensor would outlive the mode in which it was made (inference,
    tracing), and break later passes in another mode.
    """
    weights = np.zeros((new, old))
    scale = old / new if antialias else old / (new + offset)
    stretch = max(scale, 1.0) if antialias else 1.0
    # torch's constants: Keys' cubic has a = -0.5 with antialiasing, and -0.75 without.
    a = -0.5 if antialias else -0.75
    for i in range(new):
        centre = scale * (i + 0.5) - (0 if antialias else 0.5)
        if antialias:
            first, last = (
                max(0, int(centre - 2 * stretch + 0.5)),
                min(old, int(centre + 2 * stretch + 0.5)),
            )
            taps = np.arange(first, last)
            values = _cubic((taps - centre + 0.5) / stretch, a)
            weights[i, taps] = values / values.sum()
        else:
            taps = int(np.floor(centre)) + np.arange(-1, 3)
            np.add.at(weights[i], taps.clip(0, old - 1), _cubic(taps - centre, a))
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Returns Keys' cubic convolution kernel (1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
