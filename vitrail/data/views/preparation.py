"""Changes to how images are prepared: options of commands, so torch is not imported here."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vitrail.data.views.preprocess import Preprocess

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Preparation:
    """Changes to how images are prepared, for weights that do not say it.

    Attributes:
        mean: subtracted from the pixels, in [0, 1], one value a channel; None for the weights' own.
        std: divides the pixels after that, above 0, one value a channel; None for the weights' own.
        interpolation: filter of the resizing, bicubic or bilinear; None for the weights' own.
        crop: side of the centre crop as a fraction of the resized short side, in (0, 1]; None for
            the weights' own.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; it must be above 0 and at most 1")

    @property
    def changes(self) -> set[str]:
        """The names of the fields that are given."""
        return {name for name, value in vars(self).items() if value is not None}

    def applied(self, preprocess: "Preprocess") -> "Preprocess":
        """Returns the transform with the changes. Raises ValueError if they do not fit it."""
        changed = replace(
            preprocess,
            mean=self.mean or preprocess.mean,
            std=self.std or preprocess.std,
            interpolation=self.interpolation or preprocess.interpolation,
        )
        if len(changed.mean) != len(preprocess.mean):
            raise ValueError(
                f"mean and std have {len(changed.mean)} values, and the encoder takes "
                f"{len(preprocess.mean)} channel(s); give one value a channel"
            )
        if self.crop is None:
            return changed
        return replace(changed, resize=round(preprocess.size / self.crop))
