"""Families of operators in the skeleton, their initial weights, and the rows they make."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitrail.backbones.contract import Model, check_sizes
from vitrail.backbones.embedding import ConvPatchEmbed, NormPatchEmbed, check_divides
from vitrail.backbones.layers import Kind, truncated_normal_linear, xavier_linear
from vitrail.backbones.operators.attention import MHSA, MSSA
from vitrail.backbones.operators.tokenwise import ISTA, MLP, ODL, SwiGLU
from vitrail.backbones.operators.tssa import TSSA
from vitrail.backbones.skeleton import Family, SkeletonBackbone


def init_vit(backbone: SkeletonBackbone) -> None:
    """DINO's: truncated normal 0.02 for linear maps, class token and positions; zero biases.

    The patch embedding keeps torch's default for convolutions, as there and in timm. Registers are
    N(0, 1e-6) as in DINOv2.
    """
    truncated_normal_linear(backbone, backbone.embed_dim)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    nn.init.trunc_normal_(backbone.cls_token, std=0.02)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens, std=1e-6)


def init_crate(backbone: SkeletonBackbone) -> None:
    """Official CRATE's: N(0, 1) for class token and positions; torch's defaults for linear maps.

    Registers, which it does not have, are N(0, 1) too.
    """
    nn.init.normal_(backbone.pos_embed)
    nn.init.normal_(backbone.cls_token)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens)


def init_crate_mae(backbone: SkeletonBackbone) -> None:
    """Official CRATE-MAE's: xavier uniform for linear maps and the patch embedding, zero biases,
    0.02 for the class token; positions are left to the objective, which fixes them, and are 0.02
    until then. Dictionaries are CRATE's.
    """
    xavier_linear(backbone)
    projection = backbone.get_submodule("patch_embed.proj")
    assert isinstance(projection, nn.Conv2d)
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    nn.init.normal_(backbone.cls_token, std=0.02)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    if backbone.register_tokens is not None:
        nn.init.normal_(backbone.register_tokens, std=0.02)


FAMILIES: dict[str, Family] = {
    "vit": Family(Kind(MHSA, MLP), ConvPatchEmbed, init_vit),
    "dinov2": Family(Kind(MHSA, MLP, layer_scale=1e-5), ConvPatchEmbed, init_vit, antialias=False),
    "dinov2_swiglu": Family(
        Kind(MHSA, SwiGLU, layer_scale=1e-5), ConvPatchEmbed, init_vit, antialias=False
    ),
    "crate": Family(Kind(MSSA, ISTA, residual=False, norm_eps=1e-5), NormPatchEmbed, init_crate),
    "crate_mae": Family(
        Kind(MSSA, ISTA, residual=False, norm_eps=1e-5, arguments={"lmbda": 0.5}),
        ConvPatchEmbed,
        init_crate_mae,
        antialias=False,
    ),
    "crate_alpha": Family(Kind(MSSA, ODL, arguments={"bias": False}), ConvPatchEmbed, init_vit),
    "tost_vit": Family(Kind(TSSA, MLP), ConvPatchEmbed, init_vit),
    "aot_mssa": Family(Kind(MSSA, None), ConvPatchEmbed, init_vit),
    "aot_mhsa": Family(Kind(MHSA, None), ConvPatchEmbed, init_vit),
}

SIZES = ("width", "depth", "heads", "patch_size")
OF_KIND = ("residual", "layer_scale")
OF_FAMILY = ("registers", "antialias")


@dataclass(frozen=True)
class Skeleton(Model):
    """A family at a size. width: D; heads: h; patch_size: pixels a side; more: of its options.

    Options are the sizes, `registers`, `antialias`, `layer_scale`, `residual` (around the
    token-wise operator), and the keyword arguments of the family's operators (`bias`, `ratio`,
    `eta`, `lmbda`, `steps`, `decoupled`, ...).
    """

    family: str
    width: int
    depth: int
    heads: int
    patch_size: int
    more: tuple[tuple[str, Any], ...] = ()

    def options(self) -> dict[str, Any]:
        family = FAMILIES[self.family]
        kind = family.kind
        return {
            **{name: getattr(self, name) for name in SIZES},
            **{name: getattr(family, name) for name in OF_FAMILY},
            **{name: getattr(kind, name) for name in OF_KIND},
            **kind.defaults(),
            **dict(self.more),
        }

    def build(
        self,
        name: str,
        *,
        img_size: int | None,
        in_chans: int,
        drop_path: float,
        overrides: dict[str, Any],
    ) -> SkeletonBackbone:
        chosen = self.options() | overrides
        size = self.img_size if img_size is None else img_size
        self._check(name, size, chosen)
        config = {
            "name": name,
            "img_size": size,
            "in_chans": in_chans,
            "patch_size": chosen["patch_size"],
            **overrides,
        }
        return SkeletonBackbone(
            self._family(chosen),
            **{key: chosen[key] for key in SIZES},
            img_size=size,
            in_chans=in_chans,
            drop_path=drop_path,
            config=config,
        )

    def summary(self) -> str:
        family, chosen = FAMILIES[self.family], self.options()
        operators = " × ".join(operator.__name__ for operator in family.kind.operators())
        registers = f", {chosen['registers']} registers" if chosen["registers"] else ""
        return (
            f"width {self.width}, {self.depth} layers of {operators}, {self.heads} heads, patch "
            f"{self.patch_size}, {self.img_size} px{registers}"
        )

    def _family(self, chosen: dict[str, Any]) -> Family:
        family = FAMILIES[self.family]
        known = family.kind.defaults()
        kind = replace(
            family.kind,
            **{key: chosen[key] for key in OF_KIND},
            arguments={key: chosen[key] for key in known},
        )
        return replace(family, kind=kind, **{key: chosen[key] for key in OF_FAMILY})

    def _check(self, name: str, img_size: int, chosen: dict[str, Any]) -> None:
        check_sizes(name, {key: chosen[key] for key in SIZES})
        if chosen["registers"] < 0:
            raise ValueError(
                f"backbone {name}: registers is {chosen['registers']}; it must be >= 0"
            )
        check_divides(img_size, chosen["patch_size"], f"img_size of backbone {name},")
