"""Translates the keys of a file of weights to ours."""

import re
from dataclasses import dataclass

import torch

from vitrail.interop.read.adapters import settle_biases
from vitrail.interop.read.formats import FORMATS, Format
from vitrail.interop.read.weights_file import Checkpoint, Weights, some


@dataclass(frozen=True)
class Translation:
    """A checkpoint under our keys.

    Attributes:
        source: the file.
        format: its format.
        weights: by our keys.
        origin: the file's key for each of ours, for messages.
        heads: number of heads, if the weights show it.
    """

    source: Checkpoint
    format: Format
    weights: Weights
    origin: dict[str, str]
    heads: int | None


def detect(checkpoint: Checkpoint) -> Format:
    """Returns the first format of FORMATS that fits.

    Raises:
        ValueError: none does; with the file's keys.
    """
    for candidate in FORMATS:
        if _fits(candidate, checkpoint):
            return candidate
    known = ", ".join(candidate.name for candidate in FORMATS)
    raise ValueError(
        f"{checkpoint.path}: its keys are in no known format; they are {some(checkpoint.weights)}. "
        f"Known formats: {known}"
    )


def translate(checkpoint: Checkpoint, chosen: Format | None = None) -> Translation:
    """Translates a file's weights to our keys. Keys that are not in the format stay as they are.

    Args:
        checkpoint: the file.
        chosen: its format; None to detect it.

    Raises:
        ValueError: no known format, or weights that are not finite as float32, by name.
    """
    if chosen is None:
        chosen = detect(checkpoint)
    needed = {
        key: value
        for key, value in checkpoint.weights.items()
        if not any(re.fullmatch(pattern, key) for pattern in chosen.left_out)
    }
    _require_finite(checkpoint, needed)
    heads = None
    if chosen.heads is not None:
        pattern, axis = chosen.heads
        shapes = [value.shape for key, value in needed.items() if re.fullmatch(pattern, key)]
        heads = next((shape[axis] for shape in shapes if len(shape) > axis), None)
    named = {_rename(key, chosen.renames): (key, value) for key, value in needed.items()}
    origin = {ours: theirs for ours, (theirs, _) in named.items()}
    weights = chosen.adapt(_join({ours: value for ours, (_, value) in named.items()}))
    if chosen.family == "vit":
        weights = settle_biases(weights)
    return Translation(checkpoint, chosen, weights, origin, heads)


def _require_finite(checkpoint: Checkpoint, weights: Weights) -> None:
    # aminmax: needs no memory, and is NaN if any value is
    bad = [
        key
        for key, value in weights.items()
        if value.numel() and not torch.stack(value.float().aminmax()).isfinite().all()
    ]
    if bad:
        raise ValueError(
            f"{checkpoint.path} has weights that are NaN, infinite, or too large for float32: "
            f"{some(bad)}; its training may have diverged, take an earlier file"
        )


def _fits(candidate: Format, checkpoint: Checkpoint) -> bool:
    if candidate.lone and "architecture" in checkpoint.config:
        return False
    if candidate.containers and checkpoint.container not in candidate.containers:
        return False
    has = all(_any_match(pattern, checkpoint) for pattern in candidate.has)
    return has and not any(_any_match(pattern, checkpoint) for pattern in candidate.lacks)


def _any_match(pattern: str, checkpoint: Checkpoint) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(key) for key in checkpoint.weights)


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in renames:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(ours)
    return key


def _join(weights: Weights) -> Weights:
    """Joins "key#0/3", "key#1/3", "key#2/3" into "key"; incomplete sets stay as they are."""
    joined = {}
    for key, value in weights.items():
        whole, mark, part = key.partition("#")
        if not mark:
            joined[key] = value
            continue
        index, count = map(int, part.split("/"))
        keys = [f"{whole}#{i}/{count}" for i in range(count)]
        if not all(k in weights for k in keys):
            joined[key] = value
        elif index == 0:
            joined[whole] = torch.cat([weights[k] for k in keys])
    return joined
