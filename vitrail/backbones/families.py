"""The classes of rows of `BACKBONES`, and the families of operators that share the skeleton.

A row holds names and numbers only: listings read it without torch, and the code behind it is
imported when its options are asked for or a backbone is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vitrail.registry import Row, resolve

# "package.module:Name", or the object itself.
Reference = str | Callable[..., Any]

MHSA = "vitrail.backbones.operators.attention:MHSA"
MSSA = "vitrail.backbones.operators.attention:MSSA"
TSSA = "vitrail.backbones.operators.tssa:TSSA"
MLP = "vitrail.backbones.operators.tokenwise:MLP"
SWIGLU = "vitrail.backbones.operators.tokenwise:SwiGLU"
ISTA = "vitrail.backbones.operators.tokenwise:ISTA"
ODL = "vitrail.backbones.operators.tokenwise:ODL"
CONV = "vitrail.backbones.embedding:ConvPatchEmbed"
NORM = "vitrail.backbones.embedding:NormPatchEmbed"
INIT_VIT = "vitrail.backbones.skeleton:init_vit"
INIT_CRATE = "vitrail.backbones.skeleton:init_crate"
INIT_CRATE_MAE = "vitrail.backbones.skeleton:init_crate_mae"


@dataclass(frozen=True)
class Family:
    """The parts of a skeleton; models of a family differ in size only.

    Attributes:
        attention: class of the attention operator, built with (D, heads).
        tokenwise: class of the token-wise operator, built with (D); None for layers of attention
            only.
        patch_embed: class of the patch embedding, built with (patch size, channels, D).
        init: function that draws the initial weights for which torch's defaults are not used,
            called with the backbone.
        residual: add the token-wise operator's input to its output.
        norm_eps: epsilon of the LayerNorms.
        final_norm_eps: epsilon of the last LayerNorm; None for that of the others.
        layer_scale: initial value of a learned factor for every feature of a branch (LayerScale,
            Touvron et al. 2021); None for no such factor.
        arguments: keyword arguments of the operators.
        registers: number of tokens that belong to no patch (Darcet et al. 2024).
        antialias: antialiasing of positions resampled for another size; see `resize_positions`.
        position_offset: added to the sides of the new grid then, if there is no antialiasing.
    """

    attention: Reference
    tokenwise: Reference | None
    patch_embed: Reference
    init: Reference
    residual: bool = True
    norm_eps: float = 1e-6
    final_norm_eps: float | None = None
    layer_scale: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    registers: int = 0
    antialias: bool = True
    position_offset: float = 0.1

    def operators(self) -> str:
        """Returns the names of its operators: "MHSA × MLP"."""
        given = [self.attention] if self.tokenwise is None else [self.attention, self.tokenwise]
        return " × ".join(map(_name, given))


FAMILIES: dict[str, Family] = {
    "vit": Family(MHSA, MLP, CONV, INIT_VIT),
    "dinov2": Family(MHSA, MLP, CONV, INIT_VIT, layer_scale=1e-5, antialias=False),
    "dinov2_swiglu": Family(MHSA, SWIGLU, CONV, INIT_VIT, layer_scale=1e-5, antialias=False),
    "crate": Family(MSSA, ISTA, NORM, INIT_CRATE, residual=False, norm_eps=1e-5),
    "crate_mae": Family(
        MSSA,
        ISTA,
        CONV,
        INIT_CRATE_MAE,
        residual=False,
        norm_eps=1e-5,
        arguments={"lmbda": 0.5},
        antialias=False,
    ),
    "crate_alpha": Family(MSSA, ODL, CONV, INIT_VIT, arguments={"bias": False}),
    "tost_vit": Family(TSSA, MLP, CONV, INIT_VIT),
    "aot_mssa": Family(MSSA, None, CONV, INIT_VIT),
    "aot_mhsa": Family(MHSA, None, CONV, INIT_VIT),
}


@dataclass(frozen=True)
class BackboneRow(Row, ABC):
    """Abstract. A row of `BACKBONES`: an architecture at a size.

    A package with backbones of its own defines a subclass, whose `build` imports its code, and
    registers instances by name: `vitrail.register("backbone", "mynet_32", MyNet(32))`.

    Attributes:
        img_size: side of the images that the backbone is built for by default, in pixels.
    """

    img_size: int

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Returns what `create_backbone` may override by name, with the row's own values."""

    @abstractmethod
    def build(
        self,
        name: str,
        *,
        img_size: int | None,
        in_chans: int,
        drop_path: float,
        overrides: dict[str, Any],
    ) -> Any:
        """Returns a `vitrail.backbones.contract.Backbone` with weights from torch's generator.

        Args:
            name: the row's name, for errors and for the backbone's `config`.
            img_size: side of the images in pixels; None for the row's own.
            in_chans: channels of the images.
            drop_path: rate of stochastic depth in the last layer, in [0, 1).
            overrides: values for some of `options`, of the same types.

        Raises:
            ValueError: sizes that do not fit together.
        """

    @property
    @abstractmethod
    def summary(self) -> str:  # type: ignore[override]
        """One line for a listing: parameters, sizes, operators."""


@dataclass(frozen=True)
class Skeleton(BackboneRow):
    """A family at a size.

    Options are the sizes, `registers`, `antialias`, `position_offset`, `norm_eps`,
    `final_norm_eps`, `layer_scale`, `residual` (around the token-wise operator), and the keyword
    arguments of the family's operators (`bias`, `ratio`, `eta`, `lmbda`, `steps`, `decoupled`,
    ...).

    Attributes:
        img_size: side of the images in pixels.
        family: a name of FAMILIES, or a family of another package.
        width: features of a token, D.
        depth: number of layers.
        heads: heads of the attention, h.
        patch_size: side of a patch in pixels.
        millions: parameters without a head, in millions, for listings; None to leave them out.
        more: values of other options, as (name, value) pairs.
    """

    family: str | Family
    width: int
    depth: int
    heads: int
    patch_size: int
    millions: float | None = None
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def parts(self) -> Family:
        """The family itself."""
        return FAMILIES[self.family] if isinstance(self.family, str) else self.family

    def options(self) -> dict[str, Any]:
        return resolve("vitrail.backbones.skeleton:options")(self)

    def build(self, name: str, **arguments: Any) -> Any:
        return resolve("vitrail.backbones.skeleton:build")(self, name, **arguments)

    @property
    def summary(self) -> str:  # type: ignore[override]
        count = dict(self.more).get("registers", self.parts.registers)
        registers = f", {count} registers" if count else ""
        return (
            f"{_count(self.millions)}width {self.width}, {self.depth} layers of "
            f"{self.parts.operators()}, {self.heads} heads, patch {self.patch_size}, "
            f"{self.img_size} px{registers}"
        )


@dataclass(frozen=True)
class ToSTModel(BackboneRow):
    """A size of the published vision ToST, `vitrail.backbones.tost.ToST`.

    Options are all fields but `img_size` and `millions`, and the keyword arguments of its operators
    (`bias`, `ratio`, ...).

    Attributes:
        img_size: side of the images in pixels.
        width: features of a token, D.
        depth: number of layers over the patches.
        heads: heads of the attention, h.
        patch_size: side of a patch in pixels, a power of two.
        layer_scale: initial value of LayerScale, the official code's eta.
        millions: parameters without a head, in millions, for listings; None to leave them out.
    """

    width: int
    depth: int
    heads: int
    patch_size: int
    layer_scale: float
    millions: float | None = None

    def options(self) -> dict[str, Any]:
        return resolve("vitrail.backbones.tost:options")(self)

    def build(self, name: str, **arguments: Any) -> Any:
        return resolve("vitrail.backbones.tost:build")(self, name, **arguments)

    @property
    def summary(self) -> str:  # type: ignore[override]
        return (
            f"{_count(self.millions)}width {self.width}, {self.depth} layers of TSSA × MLP, 2 of "
            f"class attention, {self.heads} heads, convolutional stem, patch {self.patch_size}, "
            f"{self.img_size} px"
        )


@dataclass(frozen=True)
class TimmResNet(BackboneRow):
    """A ResNet of timm's, `vitrail.backbones.resnet.ResNet`. It has no options.

    The stem for small images is SimCLR's for CIFAR-10 (Chen et al. 2020, App. B.9): the first
    convolution is 3×3 with stride 1 instead of 7×7 with stride 2, and nothing is max-pooled.

    Attributes:
        img_size: side of the images in pixels.
        timm_name: name of the ResNet in timm.
        small: use the stem for small images.
        millions: parameters without a head, in millions, for listings; None to leave them out.
    """

    timm_name: str
    small: bool = False
    millions: float | None = None

    def options(self) -> dict[str, Any]:
        return {}

    def build(self, name: str, **arguments: Any) -> Any:
        return resolve("vitrail.backbones.resnet:build")(self, name, **arguments)

    @property
    def summary(self) -> str:  # type: ignore[override]
        stem = "3×3 stem without pooling" if self.small else "7×7 stem"
        return (
            f"{_count(self.millions)}timm's {self.timm_name}, batch norm over all ranks, {stem}, "
            f"{self.img_size} px"
        )


@dataclass(frozen=True)
class TimmSwin(BackboneRow):
    """A size of timm's Swin, `vitrail.backbones.swin.Swin`.

    Options are `patch_size` and `window_size`.

    Attributes:
        img_size: side of the images in pixels.
        width: features of the first stage, D; each further stage has twice as many.
        depths: layers of each stage.
        heads: heads of each stage.
        patch_size: side of a patch in pixels.
        window_size: side of a window in cells.
        millions: parameters without a head, in millions, for listings; None to leave them out.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch_size: int
    window_size: int
    millions: float | None = None

    def options(self) -> dict[str, Any]:
        return {"patch_size": self.patch_size, "window_size": self.window_size}

    def build(self, name: str, **arguments: Any) -> Any:
        return resolve("vitrail.backbones.swin:build")(self, name, **arguments)

    @property
    def summary(self) -> str:  # type: ignore[override]
        depths = "+".join(map(str, self.depths))
        return (
            f"{_count(self.millions)}width {self.width} to "
            f"{self.width * 2 ** (len(self.depths) - 1)}, {depths} layers of window attention × "
            f"MLP, {'+'.join(map(str, self.heads))} heads, window {self.window_size}, patch "
            f"{self.patch_size}, {self.img_size} px"
        )


def _count(millions: float | None) -> str:
    return "" if millions is None else f"{millions:.2f} M parameters: "


def _name(reference: Reference) -> str:
    return reference.rpartition(":")[2] if isinstance(reference, str) else reference.__name__
