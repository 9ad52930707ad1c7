"""Reads files of weights from disk. Nothing in a file is ever executed."""

import argparse
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor

from vitrail.atomic import parse_json

# Keys under which training code stores weights; of several, the first is read.
CONTAINERS = ("state_dict", "model", "teacher", "student")
PREFIXES = ("_orig_mod.", "module.", "backbone.")  # stripped in any order
# Files of a Hugging Face hub folder. Of several files of weights, the first is read. An index lists
# the files, called shards, that each hold some of the weights.
HUB_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HUB_WEIGHTS = ("model.safetensors", HUB_INDEXES[0], "pytorch_model.bin", HUB_INDEXES[1])
# Weights of other frameworks, or for other models than encoders.
HUB_OTHERS = ("tf_model.h5", "flax_model.msgpack", "open_clip_pytorch_model.bin", "model.onnx")
HUB_CONFIG, HUB_PREPROCESSING = "config.json", "preprocessor_config.json"


Weights = dict[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes:
        path: the file.
        weights: by the file's keys, prefixes stripped, on the CPU; all are floating point but the
            counters of batch norms.
        container: the innermost of CONTAINERS that held the weights, if any.
        config: content of a hub folder's config.json; {} for a lone file.
        preprocessing: content of a hub folder's preprocessor_config.json, without nulls; {} for a
            lone file.
    """

    path: Path
    weights: Weights
    container: str | None
    config: dict[str, Any]
    preprocessing: dict[str, Any]


def is_hub_folder(path: Path) -> bool:
    """Checks whether a folder holds weights under the names of the Hugging Face hub."""
    return any((path / name).is_file() for name in HUB_WEIGHTS)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads the weights of a file, without their containers and prefixes, on the CPU.

    Args:
        path: a .safetensors file, a file of torch.save, numpy's .npz, or a folder of the Hugging
            Face hub. For a file with a name of HUB_WEIGHTS, config files beside it are read too.

    Raises:
        ValueError: no such file, not a checkpoint, no weights in it, a shard that is missing or
            does not hold what its index says, or a pickle that needs code to be run (it is refused;
            nothing has been run).
    """
    path = Path(path)
    if path.is_dir() and is_hub_folder(path):
        path = next(path / name for name in HUB_WEIGHTS if (path / name).is_file())
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of a checkpoint")
    load = _load_shards if path.name in HUB_INDEXES else _load
    loaded, container = _unwrap(load(path), None)
    weights = {_strip(str(key)): value for key, value in loaded.items() if _is_weight(key, value)}
    if not weights:
        raise ValueError(
            f"{path}: no backbone weights found; its top-level keys are {some(map(str, loaded))}"
        )
    of_hub = path.name in HUB_WEIGHTS
    config = _read_json(path.parent / HUB_CONFIG) if of_hub else {}
    preprocessing = _read_json(path.parent / HUB_PREPROCESSING) if of_hub else {}
    preprocessing = {key: value for key, value in preprocessing.items() if value is not None}
    return Checkpoint(path, weights, container, config, preprocessing)


def some(keys: Iterable[str], limit: int = 12) -> str:
    """Returns the first of many names, for a message."""
    names = list(keys)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return _load_npz(path)
        # DINO's full checkpoints contain their command line; a Namespace only holds attributes
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused: either it is no checkpoint, or reading it would mean running code "
            f"from it ({_first_line(error)}); ask its author for .safetensors"
        ) from error
    except Exception as error:  # parsers raise anything for bytes of another format
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def _load_shards(index: Path) -> dict[str, Any]:
    """Returns the weights of all shards that an index lists, which lie beside it."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says the file of each weight")
    loaded: dict[str, Any] = {}
    for name in sorted({str(name) for name in places.values()}):
        # a name that leads out of the folder is no shard of it
        if Path(name).name != name or name in HUB_INDEXES:
            raise ValueError(f"{index}: {name!r} is not the name of a file beside it")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index} lists {name}, and there is no such file beside it")
        shard = _load(index.parent / name)
        listed = [key for key, place in places.items() if place == name]
        missing = [key for key in listed if not isinstance(shard, dict) or key not in shard]
        if missing:
            raise ValueError(
                f"{index.parent / name} lacks {some(missing)}, which {index.name} lists"
            )
        loaded |= {key: shard[key] for key in listed}
    return loaded


def _load_npz(path: Path) -> dict[str, Tensor]:
    # without the optimizer's moments, which are twice as large as the parameters
    with np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("an .npy array instead of an .npz archive")
        names = [name for name in arrays.files if not name.startswith(("opt/", "chrono/"))]
        return {name: _tensor(arrays[name]) for name in names}


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how numpy stores JAX's bfloat16
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _unwrap(loaded: Any, container: str | None) -> tuple[dict[Any, Any], str | None]:
    if not isinstance(loaded, dict):
        return {}, container
    for name in CONTAINERS:
        if isinstance(loaded.get(name), dict):
            return _unwrap(loaded[name], name)
    return loaded, container


def _is_weight(key: Any, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.is_floating_point() or str(key).endswith("num_batches_tracked")


def _strip(key: str) -> str:
    while key.startswith(PREFIXES):
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
    return key


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore or remove it") from error
    return content if isinstance(content, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
