"""The protocols that an evaluation runs: those asked for, or all that data and encoder allow."""

from collections.abc import Sequence

from vitrail.backbones.contract import TokenBackbone
from vitrail.config import suggest
from vitrail.data.contract import Source
from vitrail.encoder import Encoder
from vitrail.evals.registry import PROTOCOLS
from vitrail.text_encoder import TextEncoder


def choose_protocols(
    asked: Sequence[str] | None, encoder: Encoder, text: TextEncoder | None, train: Source
) -> tuple[list[str], list[str]]:
    """Returns the protocols to run, and why others are left out.

    Args:
        asked: names that the caller asks for; None for all that fit, but for the optional ones.
        encoder: to be measured.
        text: its text side, if any.
        train: the training split.
    """
    if asked is not None:
        require_labels(train, [name for name in asked if "labels" in PROTOCOLS[name].needs])
        return list(dict.fromkeys(asked)), []
    there = {
        "features": True,
        "labels": train.classes is not None,
        "captions": train.captioned,
        "masks": train.masked,
        "text": text is not None,
        "patches": isinstance(encoder.backbone, TokenBackbone),
    }
    rows = PROTOCOLS.items()
    names = [n for n, row in rows if not row.optional and all(there[need] for need in row.needs)]
    notes = []  # not of captions, masks and text: most runs have none
    if not there["labels"]:
        notes.append(f"{train.spec} has no labels{_why(train)}: no accuracies")
    if not there["patches"]:
        notes.append("the backbone has no tokens: no saliency and no PCA pictures")
    return names, notes


def require_labels(train: Source, wanted_by: Sequence[str]) -> None:
    """Raises ValueError, naming the protocols, if the source has no labels."""
    if wanted_by and train.classes is None:
        others = ", ".join(name for name, row in PROTOCOLS.items() if "labels" not in row.needs)
        raise ValueError(
            f"{', '.join(wanted_by)}: {train.spec} has no labels{_why(train)}, so there is no "
            f"accuracy to measure; ask for others ({others}), or name labelled data with --data"
        )


def _why(source: Source) -> str:
    return f" ({source.unlabelled})" if source.unlabelled else ""


def require_known(protocols: Sequence[str] | None) -> None:
    """Raises ValueError for a name that is not in the table, with the nearest one that is."""
    for name in protocols or ():
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}{suggest(name, PROTOCOLS)}")
