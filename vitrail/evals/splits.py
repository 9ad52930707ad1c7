"""The data that an encoder is measured on, and what protocols ask of it."""

import json
from collections.abc import Mapping
from pathlib import Path

from vitrail.data.contract import NoTestSplitError, Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import hold_out


def open_splits(spec: str, channels: int) -> tuple[Source, Source]:
    """The train and test splits of a SPEC; a fifth is held out where there is no test split."""
    train = open_source(spec, "train", channels=channels)
    try:
        return train, open_source(spec, "test", channels=channels)
    except NoTestSplitError:
        return hold_out(train)


MAX_BAD_FRACTION = 0.5  # where neither the call nor the run says so
NAMED = 3


def allowed(path: Path, asked: float | None) -> float:
    """The share of a split that may be bad: as asked, or as the run at `path` allows itself."""
    if asked is not None:
        return asked
    folder = path if path.is_dir() else path.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        share = float(config["max_bad_fraction"])
    except (OSError, ValueError, KeyError, TypeError):  # other people's weights, mostly
        return MAX_BAD_FRACTION
    return share if 0 <= share <= 1 else MAX_BAD_FRACTION


def counts(splits: Mapping[str, Quarantine]) -> dict[str, int]:
    """How many are bad of each split that has some."""
    return {name: len(q.entries) for name, q in splits.items() if q.entries}


def sentence(name: str, quarantine: Quarantine) -> str:
    """What is left out of a split that has bad files, by name."""
    entries = [f"{json.dumps(id)}: {reason}" for id, reason in quarantine.entries.items()]
    more = "" if len(entries) <= NAMED else f"; and {len(entries) - NAMED} more"
    are = "image cannot be used and is" if len(entries) == 1 else "images cannot be used and are"
    return f"{len(entries)} {name} {are} left out ({'; '.join(entries[:NAMED])}{more})"
