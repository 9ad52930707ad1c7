"""What an earlier evaluation.json says that still holds: of the same weights, data and settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrail.encoder import Encoder
from vitrail.evals.contract import Settings
from vitrail.evals.registry import PROTOCOLS

# The protocols whose numbers or pictures a setting changes. One that is not here changes all.
AFFECTED: dict[str, tuple[str, ...]] = {
    "k": ("knn", "knn_majority", "confusion"),
    "more_k": ("knn", "knn_majority"),
    "tau": ("knn", "confusion"),
    "draws": ("linear_10_per_class",),
    "last_blocks": ("linear_sweep",),
    "finetune": ("finetune", "finetune_1_percent", "finetune_10_percent"),
    "image_size": ("saliency", "pca", "parts", "jaccard"),
    "map_layout": ("map",),
    "maskcut": ("maskcut", "detection"),
    "coco": ("detection",),
    "templates": ("zeroshot",),
    "pictures": (),
}


def earlier(path: Path, encoder: Encoder, settings: Settings) -> dict[str, Any]:
    """What was written before of the same weights, without what settings have changed since."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before, of = dict(old["settings"]), (old["weights"], old["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    now = plain(settings)
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if of != identity(encoder) or not changed <= AFFECTED.keys():
        return {}
    stale = {protocol for name in changed for protocol in AFFECTED[name]}
    transfer = {
        spec: {name: value for name, value in numbers.items() if name not in stale}
        for spec, numbers in old.get("transfer", {}).items()
    }
    return {name: value for name, value in old.items() if name not in stale} | {
        "transfer": transfer
    }


def kept(before: dict[str, Any], spec: str) -> dict[str, Any]:
    """Earlier results on the same data."""
    if before.get("data") != spec:
        return {}
    return {name: before[name] for name in (*PROTOCOLS, "features") if name in before}


def plain(settings: Settings) -> dict[str, Any]:
    """As it comes back from JSON."""
    read: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return read


def identity(encoder: Encoder) -> tuple[str | None, int | None]:
    """The file of other people's weights, and the step of ours."""
    return encoder.info.get("weights"), encoder.info.get("step")
