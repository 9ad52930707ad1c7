"""The data that an encoder is measured on, and what protocols ask of it."""

from collections.abc import Sequence
from difflib import get_close_matches

from vitrail.data.contract import NoTestSplitError, Source
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import hold_out
from vitrail.evals.registry import PROTOCOLS


def open_splits(spec: str, channels: int) -> tuple[Source, Source]:
    """The train and test splits of a SPEC; a fifth is held out where there is no test split."""
    train = open_source(spec, "train", channels=channels)
    try:
        return train, open_source(spec, "test", channels=channels)
    except NoTestSplitError:
        return hold_out(train)


def require_labels(train: Source, wanted_by: Sequence[str]) -> None:
    """ValueError, naming those that want them, where the source has none."""
    if wanted_by and train.classes is None:
        others = ", ".join(name for name, protocol in PROTOCOLS.items() if not protocol.labels)
        raise ValueError(
            f"{', '.join(wanted_by)}: {train.spec} has no labels, so there is no accuracy to "
            f"measure; ask for others ({others}), or name labelled data with --data"
        )


def require_known(protocols: Sequence[str] | None) -> None:
    """Raises ValueError for a name that is not in the table, with the nearest one that is."""
    for name in protocols or ():
        if name not in PROTOCOLS:
            near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown protocol {name!r}; {hint}There are: {', '.join(PROTOCOLS)}")
