"""Reads other people's weights: DINO's, CRATE's, ToST's, MAE's, timm's, Hugging Face's.

`formats.FORMATS` lists the formats. Heads, decoders, mask tokens and optimizers are left out.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitrail.backbones.contract import Backbone
from vitrail.backbones.create import create_backbone, find_row
from vitrail.backbones.skeleton import SkeletonBackbone, resample_positions
from vitrail.interop.read.formats import OURS
from vitrail.interop.read.hub_preprocess import read_preprocessing
from vitrail.interop.read.match import choose_row, expected_state
from vitrail.interop.read.translate import Translation, translate
from vitrail.interop.read.weights_file import Checkpoint, Weights, read_checkpoint, some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Official:
    """Weights of a file, and the backbone that they belong to.

    Attributes:
        format: name of the file's format in `formats.FORMATS`.
        backbone: name of the backbone.
        kwargs: further arguments of `create_backbone`.
        weights: by the backbone's keys.
        preprocess: arguments of `vitrail.data.views.preprocess.Preprocess`.
        assumed: names of what the file does not say of them: mean, std, interpolation, crop.
        info: vitrail's description of the encoder, if the file is an export of vitrail's.
    """

    format: str
    backbone: str
    kwargs: dict[str, Any]
    weights: Weights
    preprocess: dict[str, Any]
    assumed: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Backbone:
        """Builds the backbone with these weights, on the CPU, in float32."""
        backbone = create_backbone(self.backbone, **self.kwargs)
        _copy(self.weights, backbone)
        return backbone

    def say_assumed(self, path: Path, given: set[str], preprocess: dict[str, Any]) -> None:
        """Logs what is assumed of the images, since neither the weights nor the caller say it.

        Args:
            path: the file or folder, for the message.
            given: names of what the caller says: some of mean, std, interpolation and crop.
            preprocess: arguments of `Preprocess`, with what is assumed.
        """
        values = {
            "mean": "mean " + " ".join(map(str, preprocess["mean"])),
            "std": "std " + " ".join(map(str, preprocess["std"])),
            "interpolation": f"interpolation {preprocess['interpolation']}",
            "crop": f"the central {preprocess['size']} of {preprocess['resize']} pixels",
        }
        names = [name for name in self.assumed if name not in given]
        if names:
            logger.warning(
                "%s (read as %s) does not say how images are prepared; assumed: %s. "
                "Change it by %s",
                path,
                self.format,
                ", ".join(values[name] for name in names),
                ", ".join(f"--{name}" for name in names),
            )


def read_official(path: str | Path) -> Official:
    """Reads a file or hub folder, whose format and sizes are found from its keys and shapes.

    For a folder that `vitrail export` wrote, in any layout, the backbone and its preprocessing are
    those of the exported encoder, as described in its config.json.

    A hub folder's preprocessor_config.json, or the pretrained_cfg in timm's config.json, is
    followed whole, or refused. For other files it is assumed that images are prepared as for
    ImageNet at the size the positions were learned on, 224 for DINOv2's 518 (the size of its own
    evaluations).

    Positions are later resampled for images of other sizes as in the format's own code (antialias,
    position_offset). A ViT of timm's that was saved without its head has the keys of DINO's, and is
    read as one; at the size of its training, that makes no difference. SimDINOv2's checkpoints are
    distinguished from those of DINOv2's training code by their head, which has no last layer.

    Of lone files only CRATE-α's (JAX), ToST's and Swin's show their heads. For the others they are
    the row's of that width, else of 64 features. A lone Swin does not show the size it was trained
    on: the row's is used. A lone file of timm's resnetblur18 has the keys of resnet18, and cannot
    be distinguished from it.

    Args:
        path: a file of weights, or a folder of the Hugging Face hub; see `read_checkpoint`.

    Raises:
        ValueError: a file that cannot be read, is in no known format, or is not a whole backbone of
            its format (missing and unexpected keys, and shapes that differ, are listed by name);
            weights that are not finite; a config.json that describes another function than ours.
    """
    checkpoint = read_checkpoint(path)
    if "vitrail" in checkpoint.config:
        return _read_ours(checkpoint)
    found = translate(checkpoint)
    name, kwargs = choose_row(found)
    wanted = expected_state(name, kwargs)
    _check(found, wanted, f"a {name}" + (f" with {kwargs}" if kwargs else ""))
    img_size = kwargs.get("img_size", find_row(name).img_size)
    prepared = read_preprocessing(checkpoint, img_size, kwargs.get("in_chans", 3))
    return Official(
        found.format.name, name, kwargs, found.weights, prepared.plain, prepared.assumed
    )


def load_official(backbone: Backbone, path: str | Path) -> None:
    """Copies a file's weights into a backbone of the same architecture.

    All weights are checked before any is copied. Positions that were learned on another square
    grid than the backbone's are resampled, as the backbone does for images of another size
    (`resample_positions`), and this is logged: at the backbone's size, its function is then the
    same as with the file's own grid.

    Args:
        backbone: changed in place.
        path: a file of weights, or a folder of the Hugging Face hub; see `read_checkpoint`.

    Raises:
        ValueError: what `read_official` raises, or weights that are not this backbone's, listing
            the missing and unexpected keys and the shapes that differ.
    """
    found = translate(read_checkpoint(path))
    resized = _resized(found, backbone)
    _check(resized, backbone.state_dict(), f"this {type(backbone).__name__}")
    _copy(resized.weights, backbone)


def _read_ours(checkpoint: Checkpoint) -> Official:
    """Reads an export of vitrail's, with the description in its config.json."""
    described = checkpoint.config["vitrail"]
    try:
        name, kwargs, plain = (described[key] for key in ("backbone", "kwargs", "preprocess"))
        wanted = expected_state(name, kwargs)
        preprocess = dict(plain) | {key: int(plain[key]) for key in ("size", "resize")}
        preprocess |= {key: tuple(plain[key]) for key in ("mean", "std")}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{checkpoint.path}: 'vitrail' in its config.json does not describe an encoder "
            f"({error!r}); restore the file, or export the encoder again"
        ) from error
    found = translate(checkpoint, OURS)
    if found.weights.keys() != wanted.keys():  # another layout
        found = _without_neutral(translate(checkpoint), wanted)
    _check(found, wanted, f"a {name} with {kwargs}")
    return Official(found.format.name, name, kwargs, found.weights, preprocess, info=described)


def _without_neutral(found: Translation, wanted: Weights) -> Translation:
    """Removes biases of 0 and LayerScales of 1 that the backbone lacks.

    transformers always has them, and exports to it contain these.
    """
    neutral = {".bias": 0.0, ".gamma": 1.0}
    weights = {
        key: value
        for key, value in found.weights.items()
        if key in wanted
        or not any(key.endswith(end) and (value == at).all() for end, at in neutral.items())
    }
    return replace(found, weights=weights)


def _check(found: Translation, wanted: Weights, what: str) -> None:
    """Raises ValueError, with all differences, if a file's weights are not the backbone's."""
    weights = found.weights
    shapes = [
        f"{key}: {list(weights[key].shape)} in the file, {list(wanted[key].shape)} in the backbone"
        for key in wanted.keys() & weights.keys()
        if weights[key].shape != wanted[key].shape
    ]
    missing = wanted.keys() - weights.keys()
    problems = {
        # files from before PyTorch 0.4.1 have no such counters, and evaluation needs none
        "missing": {key for key in missing if not key.endswith("num_batches_tracked")},
        "unexpected": {found.origin.get(key, key) for key in weights.keys() - wanted.keys()},
        "different shapes": shapes,
    }
    lines = [f"  {what}: {some(sorted(keys))}" for what, keys in problems.items() if keys]
    if lines and "fc_norm.weight" in weights:
        lines.append(
            "  it was fine-tuned on the mean over the patches (fc_norm, as in MAE's fine-tuned "
            "files), and features here are the class token's; take the weights from before that"
        )
    if lines:
        raise ValueError(
            f"{found.source.path}, read as {found.format.name}, does not hold the weights of "
            f"{what}; check that the file is whole, and, where you built the backbone, its name "
            "and sizes\n" + "\n".join(lines)
        )


def _resized(found: Translation, backbone: Backbone) -> Translation:
    positions = found.weights.get("pos_embed")
    if positions is None or positions.ndim != 3 or not isinstance(backbone, SkeletonBackbone):
        return found
    grid = math.isqrt(max(0, positions.shape[1] - 1))
    if grid in (0, backbone.grid) or positions.shape[1] != 1 + grid**2:
        return found
    new_grid = (backbone.grid, backbone.grid)
    resized = resample_positions(backbone, positions, grid, new_grid)
    logger.info(
        "%s: positions of %d × %d patches resampled to %d × %d",
        *(found.source.path, grid, grid, *new_grid),
    )
    return replace(found, weights=found.weights | {"pos_embed": resized})


def _copy(weights: Weights, backbone: Backbone) -> None:
    # not strict: `_check` allows missing counters of batch norms
    backbone.load_state_dict(weights, strict=False)
