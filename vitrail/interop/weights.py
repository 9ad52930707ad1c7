"""Other people's checkpoints into our backbones. Nothing in a file is ever executed.

Layouts read: DINO 7c446df, SimDINO 8149fc4, CRATE 674408f, timm 1.0. A ViT's keys are ours already;
official CRATE's are renamed by CRATE_KEYS.
"""

import argparse
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitrail.backbones.contract import TokenBackbone

# What training code wraps its weights in; of several, the first is taken (a teacher is exported).
CONTAINERS = ("state_dict", "model", "teacher", "student")
PREFIXES = ("_orig_mod.", "module.", "backbone.")  # stripped in this order
HEADS = ("head.", "heads.", "fc.", "dino_head.", "ibot_head.", "mlp_head.1.")

CRATE_KEYS = (
    (r"pos_embedding", r"pos_embed"),
    (r"to_patch_embedding\.1\.(\w+)", r"patch_embed.norm_in.\1"),
    (r"to_patch_embedding\.2\.(\w+)", r"patch_embed.proj.\1"),
    (r"to_patch_embedding\.3\.(\w+)", r"patch_embed.norm_out.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight", r"blocks.\1.attn.qkv.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"blocks.\1.mlp.weight"),
    (r"mlp_head\.0\.(\w+)", r"norm.\1"),
)


def read_state_dict(path: str | Path) -> dict[str, Float[Tensor, "..."]]:
    """The backbone's weights in a file: unwrapped, prefixes stripped, heads dropped, on the CPU.

    Args:
        path: a .safetensors file, or what torch.save wrote.

    Raises:
        ValueError: no such file, not a checkpoint, no weights in it, or a pickle that asks for code
            to be run (it is refused; nothing has been run).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of a checkpoint")
    weights = _unwrap(_load(path))
    tensors = {_strip(k): v for k, v in weights.items() if isinstance(v, Tensor)}
    kept = {k: v for k, v in tensors.items() if v.is_floating_point() and not k.startswith(HEADS)}
    if not kept:
        raise ValueError(
            f"{path}: no backbone weights found; its top-level keys are {_some(map(str, weights))}"
        )
    return kept


def load_official(backbone: TokenBackbone, path: str | Path) -> None:
    """Loads a DINO, SimDINO or timm ViT, or an official CRATE, into a backbone of the same shape.

    All weights are checked before any is copied.

    Raises:
        ValueError: what `read_state_dict` raises, or weights that are not this backbone's, listing
            the missing and unexpected keys and the shapes that differ.
    """
    found = {_rename(key): value for key, value in read_state_dict(path).items()}
    wanted = backbone.state_dict()
    shapes = [
        f"{key}: {list(found[key].shape)} in the file, {list(wanted[key].shape)} in the backbone"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    problems = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "different shapes": shapes,
    }
    lines = [f"  {what}: {_some(sorted(keys))}" for what, keys in problems.items() if keys]
    if lines:
        raise ValueError(
            f"{path} does not hold the weights of this {type(backbone).__name__}; check the name, "
            f"img_size and patch_size given to create_backbone\n" + "\n".join(lines)
        )
    backbone.load_state_dict(found)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DINO's full checkpoints keep their command line; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused: either it is no checkpoint, or reading it would mean running code "
            f"from it ({_first_line(error)}); ask its author for .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def _unwrap(loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        return {}
    for container in CONTAINERS:
        if isinstance(loaded.get(container), dict):
            return _unwrap(loaded[container])
    return loaded


def _strip(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _rename(key: str) -> str:
    for pattern, ours in CRATE_KEYS:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(ours)
    return key


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _some(keys: Iterable[str], limit: int = 12) -> str:
    names = list(keys)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
