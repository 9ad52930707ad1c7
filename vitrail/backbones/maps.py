"""Backbones made of timm's modules: chains of residual layers over feature maps.

Their modules, and so the keys of their weights, are timm's. The passes are written here, because
timm's stochastic depth draws from torch's generator, which would make a run depend on what else
has drawn from it.

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
    """A layer's maps; the fields are those of `LayerState`."""

    name: str
    half: Float[Tensor, "B H W D"] | None
    after: Float[Tensor, "B H W D"]


class MapBackbone(Backbone):
    """Abstract. `pooled` is the mean of the last map's cells, `patches` are its cells.

    Resolutions run one after the other, as in DINO's multi-crop wrapper (facebookresearch/dino
    7c446df). `img_size` is what the backbone is meant for; its weights do not depend on it.

    Stochastic depth is `branch_scales`' of all packed batches, the rate growing linearly over the
    L layers (timm's rule).

    Args:
        depth: L.
        drop_path: rate in the last layer.
        config: what `create_backbone` needs to build the same architecture again.
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
        """Raises ValueError where the images do not fit the backbone."""

    @abstractmethod
    def walk(
        self,
        images: Float[Tensor, "B C S s"],
        scales: Float[Tensor, "B L branches"] | None = None,
    ) -> Iterator[LayerMaps]:
        """The layers, one by one. scales: of stochastic depth, None where nothing is dropped."""

    @abstractmethod
    def last(self, cells: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        """What follows the last layer: a norm, or nothing."""

    def forward_packed(
        self, images: list[Float[Tensor, "_ C _ _"]], draws: Draws | None = None
    ) -> list[Features]:
        for batch in images:
            self.check(batch)
        scales = self._scales(images, draws)
        return [self._features(*pair) for pair in zip(images, scales, strict=True)]

    def layer_states(self, images: Float[Tensor, "B C S s"]) -> list[LayerState]:
        """Maps row by row; their sizes differ between stages. `half` is None in ResNets.

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
    """A branch with stochastic depth. at: (layer, branch of the layer)."""
    if scales is None:
        return branch
    return branch * scales[:, at[0], at[1]].view(-1, *[1] * (branch.dim() - 1))
