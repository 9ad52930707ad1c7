"""Results of an earlier evaluation that are still valid: of equal weights, data and settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrail.atomic import parse_json, read_text
from vitrail.data.views.preparation import Preparation
from vitrail.encoder import Encoder
from vitrail.evals.protocol import Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import depends, flatten, is_known, migrated, to_json


def read_previous(
    path: Path, encoder: Encoder, settings: Any, prepared: dict[str, Any]
) -> dict[str, Any]:
    """Returns an earlier evaluation of the same weights, without results of other settings.

    Args:
        path: evaluation.json, of this version or an earlier one.
        encoder: whose results are wanted.
        settings: of `make_settings`.
        prepared: of `preprocessing`.
    """
    try:
        old = parse_json(read_text(path))
        before, weights = migrated(dict(old["settings"])), (old["weights"], old["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if weights != identity(encoder) or old.get("preprocess") != prepared.get("preprocess"):
        return {}
    now, then = flatten(to_json(settings)), flatten(before)
    if any("." not in name and not is_known(name) for name in then):
        return {}  # a shared setting of another version may change anything
    changed = {name for name in now.keys() | then.keys() if now.get(name) != then.get(name)}
    transfer = {spec: _valid(numbers, changed) for spec, numbers in old.get("transfer", {}).items()}
    return _valid(old, changed) | {
        "transfer": {
            spec: numbers
            for spec, numbers in transfer.items()
            if any(name in numbers for name in PROTOCOLS)
        }
    }


def reusable(before: dict[str, Any], spec: str) -> dict[str, Any]:
    """Returns the earlier results if they are on the same data, else {}."""
    if before.get("data") != spec:
        return {}
    return {name: before[name] for name in (*PROTOCOLS, "features") if name in before}


def identity(encoder: Encoder) -> tuple[str | None, int | None]:
    """Returns the file of other people's weights, and the step of ours."""
    return encoder.info.get("weights"), encoder.info.get("step")


def preprocessing(encoder: Encoder, preparation: Preparation | None) -> dict[str, Any]:
    """Returns {"preprocess": ...} unless it is the run's own, which its encoder.json says."""
    if encoder.info.get("weights") is None and not (preparation and preparation.changes):
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(asdict(encoder.preprocess)))  # lists for tuples
    return {"preprocess": plain}


def _valid(results: dict[str, Any], changed: set[str]) -> dict[str, Any]:
    """Returns results without those that a changed setting has an effect on."""
    stale = {name for name in PROTOCOLS if _stale(PROTOCOLS[name], changed)}
    if "seed" in changed:  # it draws the rows that ranks are taken of
        stale.add("features")
    return {name: value for name, value in results.items() if name not in stale}


def _stale(row: Protocol, changed: set[str]) -> bool:
    return any(depends(row, setting) for setting in changed)
