"""Curves of several runs in one drawing, where one scale means the same for all of them."""

import json
from collections.abc import Mapping, Sequence

from vitrail.report.curves import (
    Curve,
    Points,
    draw_together,
    health_points,
    title_of,
    training_points,
)
from vitrail.report.run_files import RunFiles

# These mean the same whatever is trained. All others are parts or consequences of the loss.
ALIKE = ("lr", "weight_decay", "images_per_s", "data_wait")
STYLES = 6  # colours and dashes in the style sheet


def training_overlays(runs: Sequence[RunFiles]) -> list[Curve]:
    """Of what the steps logged: losses and all that hangs on them only for runs that were trained
    alike, and by themselves for others."""
    apart = [_trained_as(files) for files in runs]
    return _overlays(runs, [training_points(files.rows) for files in runs], apart)


def health_overlays(runs: Sequence[RunFiles]) -> list[Curve]:
    """Of the vital signs."""
    return _overlays(runs, [health_points(files.rows) for files in runs], [""] * len(runs))


def set_apart(runs: Sequence[RunFiles]) -> bool:
    """Whether some losses are on different scales."""
    return len({_trained_as(files) for files in runs}) > 1


def _trained_as(files: RunFiles) -> str:
    """Runs with the same have losses that can be compared; one that is unknown is by itself."""
    known = {name: files.config.get(name) for name in ("objective", "data")}
    if not isinstance(known["objective"], dict):
        known["run"] = files.label
    return json.dumps(known, sort_keys=True)


def _overlays(
    runs: Sequence[RunFiles], points: Sequence[Mapping[str, Points]], apart: Sequence[str]
) -> list[Curve]:
    overlays = []
    for name in dict.fromkeys(name for table in points for name in table):
        groups: dict[str, list[int]] = {}
        for i, table in enumerate(points):
            if name in table:
                groups.setdefault("" if name in ALIKE else apart[i], []).append(i)
        for group in groups.values():
            lines = {runs[i].label: (f"s{i % STYLES}", points[i][name]) for i in group}
            svg = draw_together(lines, title_of(name))
            legend = tuple((run, style) for run, (style, _) in lines.items())
            overlays.append(Curve(name, title_of(name), svg, legend))
    return overlays
