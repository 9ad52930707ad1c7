"""Decoders of masked autoencoders: from encoded tokens back to pixels.

The choice of hidden patches, and the loss, are in the objectives.

Shape legend: B images · C channels · S, s height, width in pixels · P patch size in pixels · H×W
patches, row by row · N = H W · n tokens of an image · M hidden patches · K = P² C values of a
patch · D features of the encoder · E features of the decoder · T tokens of all images.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.backbones.embedding import check_divides
from vitrail.backbones.layers import Kind, pack, run_blocks, stack, xavier_linear
from vitrail.backbones.operators.attention import MHSA, MSSA
from vitrail.backbones.operators.tokenwise import MLP
from vitrail.backbones.stochastic_depth import Shapes


def patchify(images: Float[Tensor, "B C S s"], patch_size: int) -> Float[Tensor, "B N K"]:
    """Returns the pixels of each patch, in order (row, column, channel) as in MAE.

    Raises:
        ValueError: the patch size does not divide a side.
    """
    for side in images.shape[2:]:
        check_divides(side, patch_size, "image side")
    split_BCHpWp = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return split_BCHpWp.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(
    patches: Float[Tensor, "B N K"], grid: tuple[int, int], patch_size: int
) -> Float[Tensor, "B C S s"]:
    """Returns the images from which `patchify` makes these patches.

    Args:
        patches: pixels of each patch, in `patchify`'s order.
        grid: (H, W), patches down and across.
        patch_size: side of a patch in pixels.

    Raises:
        ValueError: the patches do not fill the grid, or are not P × P pixels.
    """
    _check_grid(patches.shape[1], grid)
    if patches.shape[2] % patch_size**2:
        raise ValueError(
            f"patches of {patches.shape[2]} values are not {patch_size} × {patch_size} pixels of "
            f"any number of channels; give the patch size with which they were cut"
        )
    split_BHWppC = patches.unflatten(1, grid).unflatten(3, (patch_size, patch_size, -1))
    return split_BHWppC.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def sincos_positions(
    dim: int, grid: tuple[int, int], class_token: bool = True
) -> Float[Tensor, "1 n D"]:
    """Returns MAE's fixed positions (facebookresearch/mae efb2a80), float64 on the CPU.

    The first half of the features is a function of the column x, the second half of the row y. Each
    is sin(x ω) and then cos(x ω), for the D/4 frequencies ω_k = 10000^(−4k/D). The class token's is
    zero.

    Args:
        dim: features of a position, D.
        grid: (H, W), patches down and across.
        class_token: begin with a position of zeros.

    Raises:
        ValueError: D is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a multiple of 4 features, not {dim}")
    return torch.tensor(_sincos(dim, grid, class_token), device="cpu").unsqueeze(0)


@functools.lru_cache(maxsize=64)
def _sincos(dim: int, grid: tuple[int, int], class_token: bool) -> np.ndarray:
    """Returns the positions [n, D].

    The cached array is NumPy's: a tensor would outlive the mode (inference, tracing) of its making.
    """
    height, width = grid
    frequency = 10_000.0 ** (-4 * np.arange(dim // 4) / dim)
    columns, rows = (np.outer(np.arange(count), frequency) for count in (width, height))
    wide = (np.tile(columns, (height, 1)), np.repeat(rows, width, axis=0))
    halves = [part for angle in wide for part in (np.sin(angle), np.cos(angle))]
    return np.concatenate([np.zeros((int(class_token), dim)), np.concatenate(halves, axis=1)])


class CRATEDecoderBlock(nn.Module):
    """The inverse of a CRATE layer: h = D LN x, then h − MSSA(LN h) (CRATE-MAE, Pai et al. 2024).

    As in the official code (Ma-Lab/CRATE 674408f): D is a square matrix of the decoder, not tied to
    the encoder's, with no residual around it and no nonlinearity after it.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.weight = nn.Parameter(torch.empty(dim, dim))  # D
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = MSSA(dim, heads)
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, tokens: Float[Tensor, "T D"], shapes: Shapes) -> Float[Tensor, "T D"]:
        """Runs the layer over packed tokens.

        Args:
            tokens: packed tokens.
            shapes: (B, n) of each resolution, in the order in which the tokens are packed.
        """
        decoded_TD = F.linear(self.norm1(tokens), self.weight)
        return decoded_TD - self.attn(self.norm2(decoded_TD), shapes)


class CRATEDecoder(nn.Module):
    """CRATE-MAE's decoder: as many layers as the encoder has, LayerNorm, linear map to pixels.

    It gets all patches: hidden ones are replaced by a mask token before the encoder, not after. It
    adds no positions. Its block norms have eps 1e-5 and the last one 1e-6, as in the official code.

    Args:
        dim: features of the encoder, D.
        heads: heads of the attention.
        patch_size: side of a patch in pixels, P.
        depth: number of layers.
        in_chans: channels of the images, C.
        n_prefix: number of tokens before the patches.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        patch_size: int,
        depth: int = 12,
        in_chans: int = 3,
        n_prefix: int = 1,
    ):
        super().__init__()
        self.n_prefix = n_prefix
        self.blocks = nn.ModuleList(CRATEDecoderBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, patch_size**2 * in_chans)
        xavier_linear(self)

    def forward(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B N K"]:
        """Returns pixels of the patches in `patchify`'s order; n = n_prefix + N."""
        tokens_TD, shapes = pack([tokens])
        for block in self.blocks:
            tokens_TD = block(tokens_TD, shapes)
        decoded_BnD = self.norm(tokens_TD).unflatten(0, shapes[0])
        return self.pred(decoded_BnD[:, self.n_prefix :])


class ViTDecoder(nn.Module):
    """MAE's decoder (He et al. 2022; facebookresearch/mae efb2a80): a small ViT over all patches.

    A linear map to its width, a mask token in place of each hidden patch, fixed positions, layers,
    LayerNorm, linear map to pixels. Its keys are MAE's without `decoder_`; the positions are no
    parameter, and are computed for the grid at hand.

    Args:
        dim: features of the encoder, D.
        patch_size: side of a patch in pixels, P.
        width: features of the decoder, E, a multiple of 4 and of `heads`.
        depth: number of layers.
        heads: heads of the attention.
        in_chans: channels of the images, C.

    Raises:
        ValueError: the width does not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        patch_size: int,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        in_chans: int = 3,
    ):
        super().__init__()
        if width % 4 or width % heads:
            raise ValueError(
                f"the decoder's width {width} must be a multiple of 4, for its positions, and of "
                f"its {heads} heads"
            )
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = stack(Kind(MHSA, MLP), width, heads, depth)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, patch_size**2 * in_chans)
        xavier_linear(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        tokens: Float[Tensor, "B n D"],
        ids_restore: Int[Tensor, "B N"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "B N K"]:
        """Returns pixels of all patches, in `patchify`'s order.

        Args:
            tokens: encoded: the class token, then the n - 1 visible patches in any order.
            ids_restore: for every patch of the grid its place in (visible patches, hidden patches),
                which is the inverse of the permutation that put the visible ones first.
            grid: (H, W), H W = N.

        Raises:
            ValueError: ids_restore does not fill the grid, or there are more tokens than patches.
        """
        _check_grid(ids_restore.shape[1], grid)
        hidden = ids_restore.shape[1] - (tokens.shape[1] - 1)
        if hidden < 0:
            raise ValueError(
                f"{tokens.shape[1] - 1} visible patches are more than the {ids_restore.shape[1]} "
                f"patches of ids_restore; give one class token and the visible patches"
            )
        tokens_BNE = self._restored(self.embed(tokens), ids_restore, hidden)
        positions_1NE = sincos_positions(tokens_BNE.shape[-1], grid).to(self.mask_token)
        tokens_TE, shapes = pack([tokens_BNE + positions_1NE])
        tokens_TE = run_blocks(self.blocks, tokens_TE, shapes, [(None, None)] * len(self.blocks))
        return self.pred(self.norm(tokens_TE).unflatten(0, shapes[0])[:, 1:])

    def _restored(self, tokens_BnE: Tensor, ids_restore_BN: Tensor, hidden: int) -> Tensor:
        """Returns the class token, then every patch or the mask token in its place."""
        masks_BME = self.mask_token.expand(len(tokens_BnE), hidden, -1)
        shuffled_BNE = torch.cat([tokens_BnE[:, 1:], masks_BME], dim=1)
        patches_BNE = shuffled_BNE.take_along_dim(ids_restore_BN.unsqueeze(-1), dim=1)
        return torch.cat([tokens_BnE[:, :1], patches_BNE], dim=1)


def _check_grid(patches: int, grid: tuple[int, int]) -> None:
    if patches != grid[0] * grid[1]:
        raise ValueError(
            f"{patches} patches do not fill a grid of {grid[0]} × {grid[1]}; give the grid that "
            f"the images have"
        )
