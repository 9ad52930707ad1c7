"""ToST as published for vision (Wu et al. 2025): statistics attention in the shell of XCiT.

After the official code (RobinWu218/ToST 071ea98, tost_vision/tost.py), whose shell is XCiT's
(El-Nouby et al. 2021): a convolutional stem, Fourier positions, L layers of (TSSA, MLP) over the
patches alone, then two class-attention layers in which a class token reads the patches.

Shape legend: B images · C channels · S, s height, width in pixels · P patch size in pixels · H×W
patches · N = 1 + H W tokens of an image, class token first · D features · h heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.models.xcit import PositionalEncodingFourier
from torch import Tensor, nn

from vitrail.backbones.contract import Features, LayerState, Model, TokenBackbone, check_sizes
from vitrail.backbones.embedding import check_divides, check_images
from vitrail.backbones.layers import (
    Kind,
    block_states,
    last_projection,
    pack,
    run_blocks,
    stack,
    truncated_normal_linear,
    undecayed,
    unpack,
)
from vitrail.backbones.operators.tokenwise import MLP
from vitrail.backbones.operators.tssa import TSSA
from vitrail.backbones.stochastic_depth import plan_drops
from vitrail.backbones.xcit import ClassBlock, ConvStem
from vitrail.nn.random import Draws

CLASS_LAYERS = 2


class ToST(TokenBackbone):
    """The published vision ToST. `pooled` is the class token and `patches` are the patch tokens.

    Both are after the class-attention layers and the final LayerNorm `norm`. The official code
    computes the patch tokens and drops them. `embed` puts the class token before the patches, but
    the L layers of `blocks` see the patches only: `layer_states` has their tokens, without it.

    Fourier positions are a function of where a patch lies between the image's edges, so that images
    of any size that the patch size divides are accepted. In training mode, features depend on the
    whole batch, through the stem's batch norm, and every pass moves its running statistics.

    Stochastic depth works on the branches of `blocks`. Its rate grows linearly; in the official
    code it is the same in all layers. The official code decays `temp`, though it names it as
    exempt: its optimizer asks the model only, not its layers. Here it is exempt, as is the class
    token.

    Args:
        kind: of `blocks`. The class-attention layers share its token-wise operator and LayerScale.
        patch_size: P, a power of two.
        img_size: pixels a side that it is meant for; its weights do not depend on it.
        drop_path: rate of stochastic depth in the last layer.
        config: what `create_backbone` needs to build the same architecture again.
    """

    batch_coupled: ClassVar[bool] = True

    def __init__(
        self,
        kind: Kind,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        img_size: int,
        in_chans: int,
        drop_path: float,
        config: dict[str, Any],
    ):
        super().__init__()
        self.embed_dim = width
        self.in_chans = in_chans
        self.img_size = img_size
        self.patch_size = patch_size
        self.drop_path = drop_path
        self.config = config
        self.n_prefix = 1
        self.checkpointing = False  # see `run_blocks`
        self.patch_embed = ConvStem(patch_size, in_chans, width)
        self.pos_embeder = PositionalEncodingFourier(dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = stack(kind, width, heads, depth)
        self.cls_attn_blocks = nn.ModuleList(
            ClassBlock(kind, width, heads) for _ in range(CLASS_LAYERS)
        )
        self.norm = kind.build_norm(width)
        self._init_weights()

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        encoded = self.encode([self.embed(batch) for batch in images], draws)
        return [
            Features(
                pooled=tokens_BND[:, 0], patches=tokens_BND[:, 1:].unflatten(1, self._grid(batch))
            )
            for tokens_BND, batch in zip(encoded, images, strict=True)
        ]

    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        patches_BND = self._embed_patches(images)
        return torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches_BND], dim=1)

    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        tokens_TD, shapes = pack([batch[:, 1:] for batch in tokens])
        depth, skip = len(self.blocks), not self.compiled
        drops = plan_drops(draws, shapes, self.drop_path, depth, tokens_TD, skip)
        tokens_TD = run_blocks(self.blocks, tokens_TD, shapes, drops, self.checkpointing)
        return [
            self.norm(self._read(self.cls_attn_blocks, batch[:, :1], patches))
            for batch, patches in zip(tokens, unpack(tokens_TD, shapes), strict=True)
        ]

    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """The class token's attention weights in the last class-attention layer, per head.

        With its weight for itself they sum to 1.
        """
        tokens_BND = self.embed(images)
        patches_TD, shapes = pack([tokens_BND[:, 1:]])
        for block in self.blocks:
            patches_TD = block(patches_TD, shapes)
        *before, last = self.cls_attn_blocks
        read_BND = self._read(before, tokens_BND[:, :1], patches_TD.unflatten(0, shapes[0]))
        assert isinstance(last, ClassBlock)
        return last.maps(read_BND)[:, :, 1:].unflatten(2, self._grid(images))

    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """What the last layer of `blocks` compares patches by, heads concatenated."""
        attention, projected_BNK = last_projection(self.blocks, self._embed_patches(images))
        return attention.keys(projected_BNK).unflatten(1, self._grid(images))

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """The patches after every layer of `blocks`; the class-attention layers are left out."""
        return block_states(self.blocks, self._embed_patches(images))

    def no_weight_decay(self) -> set[str]:
        return undecayed(self.blocks) | {"cls_token"}

    def _embed_patches(self, images: Tensor) -> Tensor:
        check_images(images, self.patch_size, self.in_chans)
        patches_BHWD = self.patch_embed(images)
        positions_1DHW = self.pos_embeder(1, *patches_BHWD.shape[1:3])
        return (patches_BHWD + positions_1DHW.permute(0, 2, 3, 1)).flatten(1, 2)

    @staticmethod
    def _read(
        blocks: Sequence[nn.Module] | nn.ModuleList, class_B1D: Tensor, patches_BND: Tensor
    ) -> Tensor:
        tokens_BND = torch.cat([class_B1D, patches_BND], dim=1)
        for block in blocks:
            tokens_BND = block(tokens_BND)
        return tokens_BND

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _init_weights(self) -> None:
        """Official: truncated normal 0.02 for linear maps and the class token, zero biases.

        Convolutions keep torch's default.
        """
        truncated_normal_linear(self, self.embed_dim)
        nn.init.trunc_normal_(self.cls_token, std=0.02)


KIND = Kind(TSSA, MLP, layer_scale=1.0)
SIZES = ("width", "depth", "heads", "patch_size")


@dataclass(frozen=True)
class ToSTModel(Model):
    """A size of `ToST`. width: D; heads: h; patch_size: P; layer_scale: the official code's eta.

    Options are these, and the keyword arguments of its operators (`bias`, `ratio`, ...).
    """

    width: int
    depth: int
    heads: int
    patch_size: int
    layer_scale: float

    def options(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name) for name in SIZES}
        return {**sizes, "layer_scale": self.layer_scale, **KIND.defaults()}

    def build(
        self,
        name: str,
        *,
        img_size: int | None,
        in_chans: int,
        drop_path: float,
        overrides: dict[str, Any],
    ) -> ToST:
        chosen = self.options() | overrides
        size = self.img_size if img_size is None else img_size
        _check(name, size, chosen)
        arguments = {key: chosen[key] for key in KIND.defaults()}
        config = {"name": name, "img_size": size, "in_chans": in_chans}
        return ToST(
            replace(KIND, layer_scale=chosen["layer_scale"], arguments=arguments),
            **{key: chosen[key] for key in SIZES},
            img_size=size,
            in_chans=in_chans,
            drop_path=drop_path,
            config={**config, "patch_size": chosen["patch_size"], **overrides},
        )

    def summary(self) -> str:
        return (
            f"width {self.width}, {self.depth} layers of TSSA × MLP, {CLASS_LAYERS} of class "
            f"attention, {self.heads} heads, convolutional stem, patch {self.patch_size}, "
            f"{self.img_size} px"
        )


def _check(name: str, img_size: int, chosen: dict[str, Any]) -> None:
    check_sizes(name, {key: chosen[key] for key in SIZES})
    width, patch_size = chosen["width"], chosen["patch_size"]
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(
            f"backbone {name}: patch_size is {patch_size}; its stem halves the image, so that it "
            f"must be a power of two from 2 on"
        )
    if width % (patch_size // 2):
        raise ValueError(
            f"backbone {name}: width {width} is not a multiple of {patch_size // 2}, half of "
            f"patch_size, as the channels of its stem need"
        )
    check_divides(img_size, patch_size, f"img_size of backbone {name},")
