"""The skeleton: an embedding and L layers of (attention operator, token-wise operator).

Shape legend: T tokens of all images of all resolutions · B images of one resolution · N = 1 + R +
H W tokens of an image, class token first, then registers · H×W patches · D features · h heads.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.backbones.contract import (
    Backbone,
    Features,
    LayerState,
    MaskableBackbone,
    check_sizes,
)
from vitrail.backbones.embedding import check_divides, check_images, resize_positions
from vitrail.backbones.families import Family, Skeleton
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
    xavier_linear,
)
from vitrail.backbones.stochastic_depth import plan_drops
from vitrail.nn.random import Draws
from vitrail.registry import resolve

SIZES = ("width", "depth", "heads", "patch_size")
OF_FAMILY = (
    *("registers", "antialias", "position_offset", "residual", "layer_scale"),
    *("norm_eps", "final_norm_eps"),
)


class SkeletonBackbone(MaskableBackbone):
    """A backbone of a class token, registers and patches through layers of one kind.

    `pooled` is the class token and `patches` are the patch tokens, both after the final LayerNorm
    `norm`. Official CRATE has no such norm in its transformer: its head is LayerNorm + Linear on
    the class token. That LayerNorm is `norm` here, and is applied to the patches too. Registers
    have no positions, and are inserted after the class token, as in DINOv2.

    Stochastic depth works on residual branches. Its rate increases linearly up to `drop_path` in
    the last layer.

    Args:
        family: the operators, the patch embedding and the initial weights.
        width: features of a token, D.
        depth: number of layers.
        heads: heads of the attention, h.
        patch_size: side of a patch in pixels.
        img_size: side in pixels of the images for which positions are learned. Images of any other
            size that the patch size divides are accepted, with resampled positions.
        in_chans: channels of the images, C.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        config: arguments with which `create_backbone` builds the same architecture again.
    """

    def __init__(
        self,
        family: Family,
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
        self.heads = heads
        self.in_chans = in_chans
        self.img_size = img_size
        self.patch_size = patch_size
        self.drop_path = drop_path
        self.config = config
        self.antialias = family.antialias
        self.position_offset = family.position_offset
        self.n_prefix = 1 + family.registers
        self.checkpointing = False  # see `run_blocks`
        self.grid = img_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        kind = kind_of(family)
        registers_1RD = torch.zeros(1, family.registers, width)
        self.register_tokens = nn.Parameter(registers_1RD) if family.registers else None
        self.patch_embed = resolve(family.patch_embed)(patch_size, in_chans, width)
        self.blocks = stack(kind, width, heads, depth)
        self.norm = kind.build_norm(width, family.final_norm_eps)
        resolve(family.init)(self)

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        encoded = self.encode([self.embed(batch) for batch in images], draws)
        return [
            Features(
                pooled=tokens_BND[:, 0],
                patches=tokens_BND[:, self.n_prefix :].unflatten(1, self._grid_of(batch)),
            )
            for tokens_BND, batch in zip(encoded, images, strict=True)
        ]

    def embed_patches(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        check_images(images, self.patch_size, self.in_chans)
        return self.patch_embed(images)

    def assemble(self, patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B N D"]:
        count, height, width = patches.shape[:3]
        class_B1D = self.cls_token.expand(count, -1, -1)
        tokens_BND = torch.cat([class_B1D, patches.flatten(1, 2)], dim=1)
        tokens_BND = tokens_BND + self.positions((height, width))
        if self.register_tokens is None:
            return tokens_BND
        registers_BRD = self.register_tokens.expand(count, -1, -1).to(tokens_BND.dtype)
        return torch.cat([tokens_BND[:, :1], registers_BRD, tokens_BND[:, 1:]], dim=1)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n D"]:
        """Returns positions of the class token and of a grid of H × W patches, n = 1 + H W."""
        return resample_positions(self, self.pos_embed, self.grid, grid)

    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        tokens_TD, shapes = pack(tokens)
        depth, skip = len(self.blocks), not self.compiled
        drops = plan_drops(draws, shapes, self.drop_path, depth, tokens_TD, skip)
        tokens_TD = run_blocks(self.blocks, tokens_TD, shapes, drops, self.checkpointing)
        return unpack(self.norm(tokens_TD), shapes)

    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """Returns the last layer's maps over the patches, per head.

        For operators with attention weights, a map is the class token's row of the softmax without
        its weights for itself and the registers. For MSSA the row is softmax(w_cls · w_j/√p).
        """
        attention, projected_BNK = last_projection(self.blocks, self.embed(images))
        maps_BhN = attention.maps(projected_BNK)
        return maps_BhN[:, :, self.n_prefix :].unflatten(2, self._grid_of(images))

    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        attention, projected_BNK = last_projection(self.blocks, self.embed(images))
        keys_BND = attention.keys(projected_BNK)
        return keys_BND[:, self.n_prefix :].unflatten(1, self._grid_of(images))

    def no_weight_decay(self) -> set[str]:
        return undecayed(self.blocks)

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        return block_states(self.blocks, self.embed(images))

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size


def resample_positions(
    backbone: SkeletonBackbone,
    positions: Float[Tensor, "1 n D"],
    grid: int,
    new_grid: tuple[int, int],
) -> Float[Tensor, "1 m D"]:
    """Resamples positions as a backbone does for images of another size; see `resize_positions`."""
    return resize_positions(positions, grid, new_grid, backbone.antialias, backbone.position_offset)


def kind_of(family: Family) -> Kind:
    """Returns the kind of a family's layers, with its operators imported."""
    return Kind(
        resolve(family.attention),
        resolve(family.tokenwise),
        residual=family.residual,
        norm_eps=family.norm_eps,
        layer_scale=family.layer_scale,
        arguments=family.arguments,
    )


def options(row: Skeleton) -> dict[str, Any]:
    """Returns the options of a row, with the row's own values."""
    family = row.parts
    return {
        **{name: getattr(row, name) for name in SIZES},
        **{name: getattr(family, name) for name in OF_FAMILY},
        **kind_of(family).defaults(),
        **dict(row.more),
    }


def build(
    row: Skeleton,
    name: str,
    *,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    overrides: dict[str, Any],
) -> SkeletonBackbone:
    """Builds the backbone of a row. See `BackboneRow.build`."""
    chosen = options(row) | overrides
    size = row.img_size if img_size is None else img_size
    _check(name, size, chosen)
    arguments = {key: chosen[key] for key in kind_of(row.parts).defaults()}
    family = replace(row.parts, arguments=arguments, **{key: chosen[key] for key in OF_FAMILY})
    config = {"name": name, "img_size": size, "in_chans": in_chans}
    return SkeletonBackbone(
        family,
        **{key: chosen[key] for key in SIZES},
        img_size=size,
        in_chans=in_chans,
        drop_path=drop_path,
        config={**config, "patch_size": chosen["patch_size"], **overrides},
    )


def init_vit(backbone: SkeletonBackbone) -> None:
    """Draws DINO's initial weights.

    Linear maps, class token and positions are truncated normal with deviation 0.02, biases are
    zero. The patch embedding keeps torch's default for convolutions, as in DINO and timm. Registers
    are N(0, 1e-6) as in DINOv2.
    """
    truncated_normal_linear(backbone, backbone.embed_dim)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    nn.init.trunc_normal_(backbone.cls_token, std=0.02)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens, std=1e-6)


def init_crate(backbone: SkeletonBackbone) -> None:
    """Draws official CRATE's initial weights.

    Class token and positions are N(0, 1), linear maps keep torch's defaults. Registers, which
    official CRATE does not have, are N(0, 1) too.
    """
    nn.init.normal_(backbone.pos_embed)
    nn.init.normal_(backbone.cls_token)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens)


def init_crate_mae(backbone: SkeletonBackbone) -> None:
    """Draws official CRATE-MAE's initial weights.

    Linear maps and the patch embedding are Xavier-uniform, biases zero, the class token has
    deviation 0.02. Positions, which the objective replaces by fixed ones, have deviation 0.02.
    Dictionaries are CRATE's.
    """
    xavier_linear(backbone)
    projection = backbone.get_submodule("patch_embed.proj")
    assert isinstance(projection, nn.Conv2d)
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    nn.init.normal_(backbone.cls_token, std=0.02)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens, std=0.02)


def change_size(backbone: Backbone, img_size: int) -> None:
    """Makes `img_size` the size that a backbone is built for, in place.

    Learned positions are resampled as the backbone does for images of that size, so its features
    of such images stay the same.

    Args:
        backbone: any backbone; only a skeleton has positions to resample.
        img_size: side of the images in pixels.

    Raises:
        ValueError: a size that the patch does not divide.
    """
    name = backbone.config.get("name", type(backbone).__name__)
    patch_size = backbone.config.get("patch_size", 1)
    check_divides(img_size, patch_size, f"img_size of backbone {name},")
    if isinstance(backbone, SkeletonBackbone):
        _change_positions(backbone, img_size // backbone.patch_size)
    backbone.img_size = img_size
    backbone.config = backbone.config | {"img_size": img_size}


def _change_positions(backbone: SkeletonBackbone, grid: int) -> None:
    learned = backbone.pos_embed
    with torch.no_grad():
        resized = resample_positions(backbone, learned, backbone.grid, (grid, grid))
    backbone.pos_embed = nn.Parameter(resized, requires_grad=learned.requires_grad)
    backbone.grid = grid


def _check(name: str, img_size: int, chosen: dict[str, Any]) -> None:
    check_sizes(name, {key: chosen[key] for key in SIZES})
    if chosen["registers"] < 0:
        raise ValueError(f"backbone {name}: registers is {chosen['registers']}; it must be >= 0")
    for key in ("norm_eps", "final_norm_eps"):
        if chosen[key] is not None and not chosen[key] > 0:
            raise ValueError(f"backbone {name}: {key} is {chosen[key]}; it must be above 0")
    if not chosen["position_offset"] >= 0:
        raise ValueError(
            f"backbone {name}: position_offset is {chosen['position_offset']}; it must be >= 0"
        )
    check_divides(img_size, chosen["patch_size"], f"img_size of backbone {name},")
