"""A row of the table of named backbones: a size, and how it is built."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from vitrail.backbones.contract import Backbone


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
