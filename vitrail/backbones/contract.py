"""The contract of a backbone: from views to `Features`.

Shape legend: B images · C channels · S, s height, width in pixels · D features · H×W patches ·
N tokens of an image · h heads · p features of a head · G×G the grid of learned positions.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.nn.random import Draws


@dataclass(frozen=True)
class Features:
    """The output of a backbone.

    Attributes:
        pooled: one vector for each image, [B, D].
        patches: the grid of features, [B, H, W, D]; None for a backbone without one.
    """

    pooled: Float[Tensor, "B D"]
    patches: Float[Tensor, "B H W D"] | None


@dataclass(frozen=True)
class LayerState:
    """The state of one layer for given images.

    Attributes:
        name: name of the layer's module.
        half: tokens after the attention half-step, [B, N, D]; None for a layer that is not made of
            two halves.
        after: tokens after the layer, [B, N, D].
        bases: subspaces on which the layer's attention projects tokens, [h, D, p]; None for an
            attention without subspaces.
    """

    name: str
    half: Float[Tensor, "B N D"] | None
    after: Float[Tensor, "B N D"]
    bases: Float[Tensor, "h D p"] | None


class Backbone(nn.Module):
    """Abstract. A network from images to features.

    Attributes:
        embed_dim: features of an image, D.
        in_chans: channels of the images, C.
        img_size: side of the images that it was built for, in pixels.
        config: arguments with which `create_backbone` builds the same architecture again.
        batch_coupled: in training, features of an image depend on the rest of its batch (batch
            norm); such a batch cannot be cut into accumulation slices.
    """

    embed_dim: int
    in_chans: int
    img_size: int
    config: dict[str, Any]
    batch_coupled: ClassVar[bool] = False

    @abstractmethod
    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        """Returns features of several batches of different resolutions.

        Args:
            images: one normalised batch for each resolution.
            draws: randomness for stochastic depth; None turns it off (teacher, evaluation).

        Raises:
            ValueError: a size that does not fit the backbone, or a wrong channel count.
        """

    def forward(self, images: Float[Tensor, "B C S s"], draws: Draws | None = None) -> Features:
        return self.forward_packed([images], draws)[0]

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters without weight decay, besides biases and other 1-D ones."""
        return set()

    @abstractmethod
    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """Returns the tokens after every layer; for a convolutional layer, the cells of its map."""


class TokenBackbone(Backbone):
    """Abstract. A backbone of an embedding and L layers over tokens.

    Attributes:
        patch_size: side of a patch in pixels, P.
        n_prefix: number of tokens before the patches (class token, registers).
        blocks: the layers, which are compiled one by one on CUDA.
        norm: the final norm.
        compiled: set by `compile_blocks`; shapes must then not depend on the draws.
    """

    patch_size: int
    n_prefix: int
    blocks: nn.ModuleList
    norm: nn.Module
    compiled: bool = False

    @abstractmethod
    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        """Returns tokens with positions: `n_prefix` tokens, then the patches."""

    @abstractmethod
    def encode(
        self, tokens: list[Float[Tensor, "_ _ D"]], draws: Draws | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        """Runs the layers and the final norm over packed batches of any numbers of tokens.

        `forward_packed` is `embed`, `encode`, and a split of the tokens into `Features`. Objectives
        that hide patches call `embed` and `encode` themselves.
        """

    @abstractmethod
    def token_maps(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B h H W"]:
        """Returns each patch's weight for the class token in the last layer, per head, >= 0.

        For operators without such weights (TSSA), see their `maps`.
        """

    @abstractmethod
    def token_keys(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """Returns the last layer's keys of the patches, heads concatenated (MSSA: projections)."""


class MaskableBackbone(TokenBackbone):
    """Abstract. A backbone in which a patch can be hidden: each token is embedded from one patch.

    A token that is left out or replaced leaves no trace of its pixels in the other tokens. Behind a
    convolutional stem it would.

    Attributes:
        heads: heads of every layer, h.
        grid: patches along each side for which positions are learned, G.
        pos_embed: learned positions, [1, 1 + G², D], the class token's first.
    """

    heads: int
    grid: int
    pos_embed: nn.Parameter

    @abstractmethod
    def embed_patches(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B H W D"]:
        """Returns the embedded patches, without positions."""

    @abstractmethod
    def assemble(self, patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B N D"]:
        """Returns the tokens of embedded patches, with prefix and positions added."""

    def embed(self, images: Float[Tensor, "B C S s"]) -> Float[Tensor, "B N D"]:
        return self.assemble(self.embed_patches(images))


def check_sizes(name: str, sizes: dict[str, int]) -> None:
    """Checks that sizes are at least 1 and that the heads divide the width.

    Raises:
        ValueError: they are not, or do not.
    """
    for key, size in sizes.items():
        if size < 1:
            raise ValueError(f"backbone {name}: {key} is {size}; it must be at least 1")
    if sizes["width"] % sizes["heads"]:
        raise ValueError(
            f"backbone {name}: width {sizes['width']} is not a multiple of heads {sizes['heads']}"
        )
