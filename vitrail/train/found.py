"""What a run found, before its first step: in the log, and as found.json in its folder."""

import json
from pathlib import Path
from typing import Any

from vitrail.atomic import write_atomically
from vitrail.data.tools.found import find
from vitrail.objectives.contract import ImageObjective
from vitrail.train.build import captions_of
from vitrail.train.contract import Parts
from vitrail.train.image_feed import ImageFeed
from vitrail.train.log import print_line

NAME = "found.json"


def report_found(run: Path, parts: Parts[Any]) -> None:
    """Prints what was found, and writes it beside config.json. Only for rank 0."""
    feed, objective = parts.feed, parts.objective
    if not isinstance(feed, ImageFeed):
        return
    more = cut_captions(feed, objective) if isinstance(objective, ImageObjective) else []
    found = find(feed.source, more)
    said = set(feed.source.notes)  # when it was opened
    notes = [f"note: {note}" for note in found["notes"] if note not in said]
    print_line("\n  ".join([*found["lines"], *notes]))
    write_atomically(run / NAME, json.dumps(found, indent=2) + "\n")


def cut_captions(feed: ImageFeed, objective: ImageObjective) -> list[str]:
    """Returns a sentence on captions that are longer than the text tower's context, if any."""
    side, captions = objective.text_side, captions_of(feed.source)
    if side is None or not captions:
        return []
    context = int(side.space.config["context"])
    longer = side.tokenizer.count_longer(captions, context)
    if not longer:
        return []
    return [
        f"{longer:,} of {len(captions):,} captions are longer than the context of {context} tokens "
        "and lose their last words (--objective.context)"
    ]
