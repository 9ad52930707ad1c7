"""The train and test splits of an evaluation, and the summary of their unreadable files."""

import json
from collections.abc import Mapping
from pathlib import Path

from vitrail.atomic import parse_json, read_text
from vitrail.data.contract import NoTestSplitError, Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import hold_out


def open_splits(spec: str, channels: int) -> tuple[Source, Source]:
    """Opens the train and test splits of a SPEC; a fifth is held out if it has no test split."""
    train = open_source(spec, "train", channels=channels)
    try:
        return train, open_source(spec, "test", channels=channels)
    except NoTestSplitError:
        return hold_out(train)


MAX_BAD_FRACTION = 0.5  # if given by neither the call nor the run
LISTED = 3  # bad files listed by name


def bad_file_limit(path: Path, asked: float | None) -> float:
    """Returns the share of a split that may be unreadable, in [0, 1].

    Args:
        path: a run's folder, or a file in it.
        asked: the caller's limit; None for the run's, or 0.5 if that is not known.
    """
    if asked is not None:
        return asked
    folder = path if path.is_dir() else path.parent
    try:
        config = parse_json(read_text(folder / "config.json"))
        share = float(config["max_bad_fraction"])
    except (OSError, ValueError, KeyError, TypeError):  # weights that are not from a run
        return MAX_BAD_FRACTION
    return share if 0 <= share <= 1 else MAX_BAD_FRACTION


def bad_file_counts(splits: Mapping[str, Quarantine]) -> dict[str, int]:
    """Counts the unreadable images of each split that has any."""
    return {name: len(q.entries) for name, q in splits.items() if q.entries}


def bad_file_summary(name: str, quarantine: Quarantine) -> str:
    """Returns a sentence that lists the unreadable images of a split, up to LISTED by name."""
    entries = [f"{json.dumps(id)}: {reason}" for id, reason in quarantine.entries.items()]
    more = "" if len(entries) <= LISTED else f"; and {len(entries) - LISTED} more"
    are = "image cannot be used and is" if len(entries) == 1 else "images cannot be used and are"
    return f"{len(entries)} {name} {are} left out ({'; '.join(entries[:LISTED])}{more})"
