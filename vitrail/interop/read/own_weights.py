"""The weights that vitrail has written: read, and compared with the backbone that they are of."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file. Raises ValueError if it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or is not a safetensors file ({error}); restore it, or write it "
            f"again with `vitrail resume {path.parent}`"
        ) from error


def require_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError if weights hold NaN or infinity, listing the tensors by name."""
    wrong = [
        f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()})"
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} holds weights that are NaN or infinite: {', '.join(wrong[:3])}{more}. The "
            "training diverged or the file is damaged; use an earlier checkpoint or train again "
            "with a lower learning rate"
        )


def require_matching(
    expected: dict[str, Tensor], weights: dict[str, Tensor], path: Path, name: str
) -> None:
    """Checks that weights have the names, shapes and kinds of numbers of a backbone."""
    lacking = [f"lacks {key}" for key in expected.keys() - weights.keys()]
    excess = [f"has an unknown {key}" for key in weights.keys() - expected.keys()]
    shapes = [
        f"{key} is {list(weights[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected.keys() & weights.keys()
        if weights[key].shape != expected[key].shape
    ]
    kinds = [
        f"{key} holds {str(weights[key].dtype).removeprefix('torch.')}"
        for key in expected.keys() & weights.keys()
        if weights[key].is_floating_point() != expected[key].is_floating_point()
    ]
    wrong = sorted(lacking) + sorted(excess) + sorted(shapes) + sorted(kinds)
    if wrong:
        more = f", and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise ValueError(
            f"{path} is not a {name} as encoder.json beside it describes: "
            f"{'; '.join(wrong[:6])}{more}. Put back the two files of one run"
        )
