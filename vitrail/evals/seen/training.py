"""What an encoder was trained on, stage by stage, and whether test images took part in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.atomic import parse_json
from vitrail.evals.seen.words import WITH
from vitrail.objectives.registry import OBJECTIVES

MAX_STAGES = 50  # of a chain of warm starts that is followed


class Stage(NamedTuple):
    """One training run of an encoder.

    Attributes:
        data: SPEC of the source.
        used: what of it was used: "labels", "captions" or "images" (neither of them).
    """

    data: str
    used: str


def used_by(objective: object) -> str:
    """Returns what an objective takes from the data, by its name: a key of WITH."""
    row = OBJECTIVES.get(objective) if isinstance(objective, str) else None
    needs: Iterable[str] = row.needs if row is not None else ()
    return next((name for name in ("labels", "captions") if name in needs), "images")


def stages(info: Mapping[str, Any]) -> list[Stage]:
    """Returns the runs that made an encoder, the last one first.

    Args:
        info: content of encoder.json. "before" holds the stages of the weights that the run started
            from; of older runs, these weights are looked for at their path ("init_from").
    """
    found: list[Stage] = []
    while len(found) < MAX_STAGES:
        if isinstance(info.get("data"), str) and info.get("objective") is not None:
            found.append(Stage(info["data"], used_by(info["objective"])))
        before, start = info.get("before"), info.get("init_from")
        if isinstance(before, list):
            return found + [stage for row in before for stage in _stage_of(row)]
        if not isinstance(start, str):
            return found
        info = _description(Path(start))
    return found


def to_json(known: Iterable[Stage]) -> list[dict[str, str]]:
    """Returns stages as encoder.json holds them under "before"."""
    return [stage._asdict() for stage in known]


def _stage_of(row: object) -> list[Stage]:
    if not isinstance(row, dict):
        return []
    data, used = row.get("data"), row.get("used")
    return [Stage(data, used)] if isinstance(data, str) and used in WITH else []


def _description(start: Path) -> dict[str, Any]:
    """Returns the content of encoder.json of the weights of a run; {} if it is gone."""
    folder = start if start.is_dir() else start.parent
    try:
        info = parse_json((folder / "encoder.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}
