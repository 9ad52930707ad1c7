"""The contract of a backbone: views in, `Features` out.

Shape legend: B images · C channels · S, s height, width in pixels · D features · H×W patches ·
N tokens of an image · h heads · p features of a head · G×G the grid of learned positions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.nn.random import Draws


@dataclass(frozen=True)
class Features:
    """pooled: one vector an image; patches: the feature grid, None where there is none."""

    pooled: Float[Tensor, "B D"]
    patches: Float[Tensor, "B H W D"] | None


@dataclass(frozen=True)
class LayerState:
    """A layer, seen from outside.

    name: the layer's module. half: its tokens after the attention half-step, None for a layer that
    is not made of two halves. after: its tokens. bases: the subspaces on which its attention
    projects tokens, None where it has none.
    """

    name: str
    half: Float[Tensor, "B N D"] | None
    after: Float[Tensor, "B N D"]
    bases: Float[Tensor, "h D p"] | None


class Backbone(nn.Module):
    """Abstract. `embed_dim` is D; `in_chans` is C; `img_size` the pixels it was built for."""

    embed_dim: int
    in_chans: int
    img_size: int
    config: dict[str, Any]  # the arguments with which `create_backbone` builds it again

    # In training, an image's features depend on the others of its batch (batch norm): then a batch
    # cannot be cut into accumulation slices.
    batch_coupled: ClassVar[bool] = False

    @abstractmethod
    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        """Features of several batches of different resolutions, in one pass over the layers.

        Args:
            images: one normalised batch per resolution.
            draws: randomness for stochastic depth; None turns it off (teacher, evaluation).

        Raises:
            ValueError: a size that does not fit the backbone, or a wrong channel count.
        """

    def forward(self, images: Float[Tensor, "B C S s"], draws: Draws | None = None) -> Features:
        return self.forward_packed([images], draws)[0]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and other 1-D ones."""
        return set()

    @abstractmethod
    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """The tokens (a convolutional layer's: the cells of its map) after every layer."""


class TokenBackbone(Backbone):
    """Abstract. A backbone that is an embedding and L layers over tokens."""

    patch_size: int
    n_prefix: int  # tokens before the patches: class token, registers
    blocks: nn.ModuleList  # the layers: compiled one by one on CUDA
    norm: nn.Module
    compiled: bool = False  # set by `compile_blocks`: shapes must not depend on the draws

    @abstractmethod
    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        """Tokens with positions, `n_prefix` others before the patches."""

    @abstractmethod
    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        """The layers and the final norm, over packed batches of any numbers of tokens.

        `forward_packed` is embed, encode and a reading of the tokens. Objectives that hide patches
        call the two themselves.
        """

    @abstractmethod
    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """How much each patch gives to the class token in the last layer, per head, >= 0.

        Operators without such weights (TSSA) give what their `maps` say.
        """

    @abstractmethod
    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """The last layer's keys of the patches, heads concatenated (MSSA: its projection)."""


class MaskableBackbone(TokenBackbone):
    """Abstract. One in which a patch can be hidden: before the layers, a token is of one patch.

    So a token that is taken away, or replaced, leaves no trace of its pixels in the others; behind
    a convolutional stem it would.
    """

    heads: int  # h, of every layer
    grid: int  # G, patches a side for which positions are learned
    pos_embed: nn.Parameter  # [1, 1 + G², D], the class token's first

    @abstractmethod
    def embed_patches(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """What each patch is embedded as, before it gets its position."""

    @abstractmethod
    def assemble(self, patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B N D"]:
        """The tokens that `embed` makes of embedded patches: prefix and positions added."""

    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        return self.assemble(self.embed_patches(images))


@dataclass(frozen=True)
class Model(ABC):
    """Abstract. img_size: pixels a side that the model is built for, where nothing else is said."""

    img_size: int

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What `create_backbone` may override by name, with the row's own values."""

    @abstractmethod
    def build(
        self,
        name: str,
        *,
        img_size: int | None,
        in_chans: int,
        drop_path: float,
        overrides: dict[str, Any],
    ) -> Backbone:
        """The backbone with weights drawn from torch's generator.

        Args:
            name: of the row, for errors and for the backbone's `config`.
            overrides: some of `options`, of the same types.

        Raises:
            ValueError: sizes that do not fit together.
        """

    @abstractmethod
    def summary(self) -> str:
        """Sizes and operators, for a listing."""


def check_sizes(name: str, sizes: dict[str, int]) -> None:
    """Raises ValueError where a size is below 1, or the heads do not divide the width."""
    for key, size in sizes.items():
        if size < 1:
            raise ValueError(f"backbone {name}: {key} is {size}; it must be at least 1")
    if sizes["width"] % sizes["heads"]:
        raise ValueError(
            f"backbone {name}: width {sizes['width']} is not a multiple of heads {sizes['heads']}"
        )
