"""The contract of a backbone: views in, `Features` out.

Shape legend: B images · C channels · S pixels a side · D features · H×W patches · h heads.
"""

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.nn.random import Draws


@dataclass(frozen=True)
class Features:
    """pooled: one vector an image; patches: the feature grid, None where there is none."""

    pooled: Float[Tensor, "B D"]
    patches: Float[Tensor, "B H W D"] | None


class Backbone(nn.Module):
    """Abstract. `embed_dim` is D; `in_chans` is C; `img_size` the pixels it was built for."""

    embed_dim: int
    in_chans: int
    img_size: int

    @abstractmethod
    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        """Features of several batches of different resolutions, in one pass over the layers.

        Args:
            images: one normalised batch per resolution.
            draws: randomness for stochastic depth; None turns it off (teacher, evaluation).

        Raises:
            ValueError: a side that the patch size does not divide, or a wrong channel count.
        """

    def forward(self, images: Float[Tensor, "B C S S"], draws: Draws | None = None) -> Features:
        return self.forward_packed([images], draws)[0]


class TokenBackbone(Backbone):
    """Abstract. A backbone that is an embedding and L layers over tokens."""

    patch_size: int
    blocks: nn.ModuleList  # the layers: compiled one by one on CUDA
    norm: nn.Module

    @abstractmethod
    def embed(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B N D"]:
        """Tokens with positions, class token first."""

    @abstractmethod
    def token_maps(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B h H W"]:
        """How much each patch gives to the class token in the last layer, per head, >= 0."""

    @abstractmethod
    def token_keys(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B H W D"]:
        """The last layer's keys of the patches, heads concatenated (MSSA: its projection)."""

    @abstractmethod
    def layer_states(
        self, images: Float[Tensor, "B C S S"]
    ) -> list[tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]]:
        """For each layer, the tokens after the attention half-step and after the whole layer."""
