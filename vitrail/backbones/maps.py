"""Backbones made of timm's modules: chains of residual layers over feature maps.

Their modules, and so the keys of their weights, are timm's. The passes are written here, because
timm's stochastic depth draws from torch's generator: a run would depend on all other draws from it.

Shape legend: B images · C channels · S, s height, width in pixels · H×W cells of a map · N = H W ·
D features of that map · L layers · 2 branches of a layer.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone, Features, LayerState
from vitrail.backbones.stochastic_depth import branch_scales
from vitrail.nn.random import Draws


@dataclass(frozen=True)
class LayerMaps:
    """A layer's maps.

    Attributes:
        name: name of the layer's module.
        half: cells after the attention half-step, [B, H, W, D]; None for a layer without halves.
        after: cells after the layer, [B, H, W, D].
    """

    name: str
    half: Float[Tensor, "B H W D"] | None
    after: Float[Tensor, "B H W D"]


class MapBackbone(Backbone):
    """Abstract. `pooled` is the mean of the last map's cells, `patches` are its cells.

    Resolutions run one after the other, as in DINO's multi-crop wrapper (facebookresearch/dino
    7c446df). Stochastic depth is `branch_scales`' of all packed batches, the rate growing linearly
    over the L layers (timm's rule).

    Args:
        embed_dim: features of the last map, D.
        in_chans: channels of the images, C.
        img_size: side of the images in pixels; the weights do not depend on it.
        depth: number of layers, L.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        config: arguments with which `create_backbone` builds the same architecture again.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        in_chans: int,
        img_size: int,
        depth: int,
        drop_path: float,
        config: dict[str, Any],
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.in_chans = in_chans
        self.img_size = img_size
        self.depth = depth
        self.drop_path = drop_path
        self.config = config

    @abstractmethod
    def check(self, images: Float[Tensor, "B C S s"]) -> None:
        """Raises ValueError if the images do not fit the backbone."""

    @abstractmethod
    def walk(
        self,
        images: Float[Tensor, "B C S s"],
        scales: Float[Tensor, "B L branches"] | None = None,
    ) -> Iterator[LayerMaps]:
        """Runs the layers, and yields the maps of each.

        Args:
            images: one normalised batch.
            scales: factors of stochastic depth; None to drop nothing.
        """

    @abstractmethod
    def last(self, cells: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        """Applies the final norm, if any, to the last layer's cells."""

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        for batch in images:
            self.check(batch)
        scales = self._scales(images, draws)
        return [self._features(*pair) for pair in zip(images, scales, strict=True)]

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """Returns the maps of every layer, row by row; their sizes differ between stages.

        `half` is None in ResNets.

        In training mode this is a pass like any other: it moves batch norm's running statistics.
        """
        self.check(images)
        return [
            LayerState(
                maps.name,
                None if maps.half is None else maps.half.flatten(1, 2),
                maps.after.flatten(1, 2),
                None,
            )
            for maps in self.walk(images)
        ]

    def _features(self, images: Tensor, scales: Tensor | None) -> Features:
        for maps in self.walk(images, scales):
            cells_BHWD = maps.after
        patches_BHWD = self.last(cells_BHWD)
        return Features(pooled=patches_BHWD.mean((1, 2)), patches=patches_BHWD)

    def _scales(self, images: list[Tensor], draws: Draws | None) -> list[Tensor | None]:
        if draws is None or self.drop_path == 0:
            return [None] * len(images)
        counts = [len(batch) for batch in images]
        scales_RL2 = branch_scales(draws, sum(counts), self.drop_path, self.depth)
        return list(scales_RL2.to(images[0]).split(counts))


def scaled(
    branch: Float[Tensor, "B *map"],
    scales: Float[Tensor, "B L branches"] | None,
    at: tuple[int, int],
) -> Float[Tensor, "B *map"]:
    """Applies stochastic depth to a branch.

    Args:
        branch: output of the branch.
        scales: factors of all branches; None to drop nothing.
        at: (layer, branch of the layer).
    """
    if scales is None:
        return branch
    return branch * scales[:, at[0], at[1]].view(-1, *[1] * (branch.dim() - 1))
