"""Reads how images are prepared: preprocessor_config.json of transformers, config.json of timm.

A preparation that vitrail has too is followed to the pixel; any other is refused by name.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from vitrail.interop.read.weights_file import HUB_PREPROCESSING, Checkpoint

# mean and standard deviation of a channel
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.449,), (0.226,))  # averages over the channels
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINOV2_TRAINED, DINOV2_EVALUATED = 518, 224  # pixels a side
CROP = 0.875  # side of the centre crop, as a share of the resized side

FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
FILTER_NAMES = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}  # which vitrail does not have


@dataclass(frozen=True)
class Prepared:
    """How images are prepared for weights.

    Attributes:
        plain: arguments of `vitrail.data.views.preprocess.Preprocess`.
        assumed: names of those that the weights do not say: mean, std, interpolation, crop.
    """

    plain: dict[str, Any]
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class _Processor:
    """The defaults of a class of transformers, for keys that preprocessor_config.json lacks.

    Attributes:
        size: of the resized image.
        square: whether a `size` that is one number is the side of a square, not the short side.
        resample: Pillow's number of the filter.
        crop: side of the centre crop; None for no crop.
        mean_std: of the channels.
    """

    size: dict[str, int]
    square: bool
    resample: int
    crop: int | None
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]


SQUARE_224 = {"height": 224, "width": 224}
VIT = _Processor(SQUARE_224, True, 2, None, HALF)
BIT = _Processor({"shortest_edge": 224}, False, 3, 224, OPENAI_CLIP)
DEIT = _Processor({"height": 256, "width": 256}, True, 3, 224, HALF)
# without the endings Fast, Pil, ImageProcessor, FeatureExtractor
PROCESSORS = {"ViT": VIT, "DeiT": DEIT, "Bit": BIT, "CLIP": BIT}
OF_MODEL = {"vit": VIT, "vit_mae": VIT, "swin": VIT, "dinov2": BIT, "dinov2_with_registers": BIT}
HARMLESS = {"do_convert_rgb", "do_reduce_labels"}
FOLLOWED = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}


def read_preprocessing(checkpoint: Checkpoint, img_size: int, in_chans: int) -> Prepared:
    """Returns how images are prepared for a file of weights, or for a hub folder.

    Args:
        checkpoint: the file, with the config files of its folder.
        img_size: pixels a side of the images on which the weights' positions were learned.
        in_chans: channels of the images.

    Raises:
        ValueError: a config that says something that vitrail does not compute.
    """
    usual = _assumed(img_size, in_chans)
    if checkpoint.preprocessing:
        return _by_transformers(checkpoint, usual, in_chans)
    config = checkpoint.config
    cfg = config.get("pretrained_cfg", config if "architecture" in config else None)
    if isinstance(cfg, dict) and cfg:
        return _by_timm(checkpoint, cfg, usual, img_size, in_chans)
    return usual


def _assumed(img_size: int, in_chans: int) -> Prepared:
    """Returns ImageNet's preparation; of DINOv2's 518 pixels, that of its own evaluations."""
    size = DINOV2_EVALUATED if img_size == DINOV2_TRAINED else img_size
    mean, std = IMAGENET if in_chans == 3 else (GREY[0] * in_chans, GREY[1] * in_chans)
    plain = {"size": size, "resize": round(size / CROP), "mean": mean, "std": std}
    return Prepared(plain, ("mean", "std", "interpolation", "crop"))


def _by_timm(
    checkpoint: Checkpoint, cfg: dict[str, Any], usual: Prepared, img_size: int, in_chans: int
) -> Prepared:
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise _refusal(checkpoint, f"crop_mode is {mode!r}, not 'center' or 'squash'")
    filter = cfg.get("interpolation") or "bicubic"
    if filter not in FILTERS.values():
        raise _refusal(checkpoint, f"interpolation is {filter!r}, not 'bicubic' or 'bilinear'")
    share = cfg.get("crop_pct") or CROP
    if not _is_number(share) or not 0 < share <= 1:
        raise _refusal(checkpoint, f"crop_pct is {share!r}, not in (0, 1]")
    # as timm rounds, but a value just below a whole number by rounding error is that number
    resize = max(img_size, math.floor(img_size / share + 1e-6))
    plain = usual.plain | {"size": img_size, "resize": resize, "interpolation": filter}
    plain |= {"keep_aspect": mode == "center", "rounding": "torchvision"}
    named = {"interpolation": "interpolation", "crop_pct": "crop", "mean": "mean", "std": "std"}
    said = {ours for theirs, ours in named.items() if cfg.get(theirs) is not None}
    if {"mean", "std"} <= said:
        plain |= _normalisation(checkpoint, cfg["mean"], cfg["std"], in_chans, "mean", "std")
    return Prepared(plain, tuple(name for name in usual.assumed if name not in said))


def _by_transformers(checkpoint: Checkpoint, usual: Prepared, in_chans: int) -> Prepared:
    given = checkpoint.preprocessing
    usual_of_class = _processor(checkpoint)
    for name, value in given.items():
        if name.startswith("do_") and value and name not in FOLLOWED | HARMLESS:
            raise _refusal(checkpoint, f"{name} is {value!r}")
    if not given.get("do_resize", True):
        raise _refusal(checkpoint, "do_resize is false, so images keep their sizes")
    plain, assumed = dict(usual.plain), set(usual.assumed)
    unsaid = {"size", "resample"} - given.keys() if usual_of_class is None else set()
    if "size" not in unsaid:
        plain |= _sizes(checkpoint, usual_of_class or replace(BIT, crop=None))
        assumed.discard("crop")
    if "resample" not in unsaid:
        default = 3 if usual_of_class is None else usual_of_class.resample
        plain["interpolation"] = _filter(checkpoint, given.get("resample", default))
        assumed.discard("interpolation")
    mean, std = given.get("image_mean"), given.get("image_std")
    if usual_of_class is not None:
        of_class = usual_of_class.mean_std
        mean, std = (of_class[0] if mean is None else mean), (of_class[1] if std is None else std)
    if (mean is not None and std is not None) or not given.get("do_normalize", True):
        plain |= _rescaled(checkpoint, mean, std, in_chans)
        assumed -= {"mean", "std"}
    plain["rounding"] = "transformers"
    return Prepared(plain, tuple(name for name in usual.assumed if name in assumed))


def _processor(checkpoint: Checkpoint) -> _Processor | None:
    """Returns the class's defaults; None if neither file says the class."""
    given = checkpoint.preprocessing
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    if name is None:
        return OF_MODEL.get(str(checkpoint.config.get("model_type")))
    kind = str(name)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in PROCESSORS:
        known = ", ".join(f"{known}ImageProcessor" for known in PROCESSORS)
        raise _refusal(checkpoint, f"image_processor_type is {name!r}; known are {known}")
    return PROCESSORS[kind]


def _sizes(checkpoint: Checkpoint, usual: _Processor) -> dict[str, Any]:
    """Returns size, resize and keep_aspect."""
    given = checkpoint.preprocessing
    is_square = given.get("default_to_square", usual.square)
    resized = _edges(given.get("size", usual.size), is_square)
    if resized.keys() == {"height", "width"} and resized["height"] == resized["width"]:
        keep_aspect, resize = False, resized["height"]
    elif resized.keys() == {"shortest_edge"}:
        keep_aspect, resize = True, resized["shortest_edge"]
    else:
        raise _refusal(checkpoint, f"size is {given.get('size')!r}; images here become squares")
    size, crop = resize, given.get("crop_size", usual.crop)
    if given.get("do_center_crop", usual.crop is not None):
        cut = _edges(crop, True)
        if cut.keys() != {"height", "width"} or cut["height"] != cut["width"]:
            raise _refusal(checkpoint, f"crop_size is {crop!r}; images here become squares")
        size = cut["height"]
        if size > resize:
            raise _refusal(checkpoint, f"crop_size is {size}, above size, {resize}: it would pad")
    elif keep_aspect:
        raise _refusal(
            checkpoint,
            f"size is the short side, {resize}, and nothing is cropped; images here become squares",
        )
    return {"size": size, "resize": resize, "keep_aspect": keep_aspect}


def _edges(size: Any, square: bool) -> dict[str, int]:
    """Returns a size as transformers' dict; {} for anything that is none."""
    if isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, dict):
        return {}
    edges = {name: value for name, value in size.items() if value is not None}
    whole = all(type(value) is int and value > 0 for value in edges.values())
    return edges if whole else {}


def _filter(checkpoint: Checkpoint, number: Any) -> str:
    if number in FILTERS:
        return FILTERS[number]
    name = FILTER_NAMES.get(number, "unknown")
    raise _refusal(checkpoint, f"resample is {number!r} ({name}), not 2 (bilinear) or 3 (bicubic)")


def _rescaled(checkpoint: Checkpoint, mean: Any, std: Any, in_chans: int) -> dict[str, Any]:
    """Returns mean and std for pixels in [0, 1]: transformers' are for pixels times its factor."""
    given = checkpoint.preprocessing
    if given.get("rescale_offset"):
        raise _refusal(checkpoint, "rescale_offset is true")
    factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    if not _is_number(factor) or not factor > 0:
        raise _refusal(checkpoint, f"rescale_factor is {factor!r}")
    if not given.get("do_normalize", True):
        mean, std = 0.0, 1.0
    plain = _normalisation(checkpoint, mean, std, in_chans, "image_mean", "image_std")
    white = 255 * factor
    if abs(white - 1) < 1e-6:  # 1/255 was written with few digits
        return plain
    return {name: tuple(value / white for value in values) for name, values in plain.items()}


def _normalisation(
    checkpoint: Checkpoint, mean: Any, std: Any, in_chans: int, *names: str
) -> dict[str, Any]:
    plain = {}
    for ours, name, value in (("mean", names[0], mean), ("std", names[1], std)):
        values = list(value) if isinstance(value, (list, tuple)) else [value] * in_chans
        if len(values) != in_chans or not all(map(_is_number, values)):
            raise _refusal(
                checkpoint, f"{name} is {value!r}, and the backbone takes {in_chans} channel(s)"
            )
        plain[ours] = tuple(map(float, values))
    return plain


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refusal(checkpoint: Checkpoint, problem: str) -> ValueError:
    file = HUB_PREPROCESSING if checkpoint.preprocessing else "config.json"
    return ValueError(
        f"{checkpoint.path.parent / file}: {problem}, and vitrail cannot preprocess images so; "
        f"edit {file} to what vitrail can follow, or remove it and give --mean, --std, "
        "--interpolation and --crop"
    )
