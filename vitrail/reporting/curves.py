"""Training curves as inline SVG, styled by the page, so they follow its light or dark colours."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from vitrail.reporting.run_files import RunFiles

WIDTH, HEIGHT = 360, 190  # units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 10, 26
MAX_POINTS = 240  # about one per column of pixels; more only make the page larger

TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "grad_norm": "Gradient norm",
    "kl": "KL divergence",
    "images_per_s": "Images per second",
    "data_wait": "Share of time waiting for data",
    "effective_rank": "Effective rank of the features",
    "spread_min": "Spread of the narrowest dimension",
    "spread_mean": "Mean spread of the dimensions",
}
FIRST = ("loss", "lr", "grad_norm", "images_per_s")
LEFT_OUT = ("step", "epoch", "health", "warning", "time", "seconds")
Points = Sequence[tuple[float, float]]  # (step, value)
Bin = tuple[float, float, float, float]  # step, lowest, mean, highest


@dataclass(frozen=True)
class Curve:
    """The drawing of one measured quantity over the steps.

    Attributes:
        name: key of the quantity.
        title: heading of the drawing.
        svg: drawing as inline SVG.
        lines: (run, CSS class of its line) for the legend; empty for a single run.
    """

    name: str
    title: str
    svg: Markup
    lines: tuple[tuple[str, str], ...] = ()


def training_curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """Returns a curve for each number logged by the steps, the important ones first."""
    return [
        Curve(name, title_of(name), draw(points, title_of(name)))
        for name, points in training_points(rows).items()
    ]


def health_curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """Returns a curve for each health measure."""
    return [
        Curve(name, title_of(name), draw(points, title_of(name)))
        for name, points in health_points(rows).items()
    ]


def training_points(rows: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """Returns (step, value) of each number logged by the steps, the important ones first."""
    names = {name for row in rows for name, value in row.items() if _is_number(value)}
    names -= set(LEFT_OUT)
    order = [*FIRST, *sorted(names - set(FIRST))]
    return _points(order, [(row.get("step", i), row) for i, row in enumerate(rows)])


def health_points(rows: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """Returns (step, value) of each health measure."""
    found = [(row.get("step", i), row["health"]) for i, row in enumerate(rows) if row.get("health")]
    found = [(step, values) for step, values in found if isinstance(values, dict)]
    return _points(sorted({name for _, values in found for name in values}), found)


def _points(names: Sequence[str], rows: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Points]:
    found = {
        name: [
            (float(step), float(values[name]))
            for step, values in rows
            if _is_number(step) and _is_number(values.get(name))
        ]
        for name in names
    }
    return {name: points for name, points in found.items() if points}


def title_of(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw(points: Points, title: str) -> Markup:
    """Draws a line through (step, value), with the range of values of steps that share a pixel."""
    bins = _binned(points)
    frame = _Frame.around([points], [b[1] for b in bins], [b[3] for b in bins])
    label = f"{title}: from {points[0][1]:.4g} to {points[-1][1]:.4g} over {len(points)} steps"
    band = [f"{frame.x(s)},{frame.y(v)}" for s, v, _, _ in bins]
    band += [f"{frame.x(s)},{frame.y(v)}" for s, _, _, v in reversed(bins)]
    shade = f'<polygon class="band" points="{" ".join(band)}"/>'
    return frame.svg(label, [shade, _stroke(frame, bins, "line")])


def draw_together(lines: Mapping[str, tuple[str, Points]], title: str) -> Markup:
    """Draws a line for each name, without ranges.

    Args:
        lines: (CSS class, points) of each line by name.
        title: heading of the drawing.
    """
    bins = {name: _binned(points) for name, (_, points) in lines.items()}
    means = [b[2] for line in bins.values() for b in line]
    frame = _Frame.around([points for _, points in lines.values()], means, means)
    ends = "; ".join(
        f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}"
        for name, (_, points) in lines.items()
    )
    strokes = [_stroke(frame, bins[name], f"line {style}") for name, (style, _) in lines.items()]
    return frame.svg(f"{title}: {ends}", strokes)


@dataclass(frozen=True)
class _Frame:
    """The axes of a drawing: a map from steps and values to coordinates.

    Attributes:
        first: first step.
        last: last step.
        low: value at the lower end of the y axis.
        high: value at the upper end of the y axis.
        x_ticks: steps with a label.
        y_ticks: values with a label and a line.
    """

    first: float
    last: float
    low: float
    high: float
    x_ticks: list[float]
    y_ticks: list[float]

    @classmethod
    def around(
        cls, lines: Sequence[Points], lows: Sequence[float], highs: Sequence[float]
    ) -> "_Frame":
        """Returns axes that contain several lines, given their lowest and highest values."""
        y_ticks = _ticks(min(lows), max(highs), 4)
        low, high = min(*lows, y_ticks[0]), max(*highs, y_ticks[-1])
        if low == high:  # a constant is drawn in the middle
            low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
        first, last = min(line[0][0] for line in lines), max(line[-1][0] for line in lines)
        x_ticks = [t for t in _ticks(first, last, 5, integer=True) if first <= t <= last]
        return cls(first, last, low, high, x_ticks, y_ticks)

    def x(self, step: float) -> str:
        """Returns the horizontal coordinate of a step."""
        part = (step - self.first) / ((self.last - self.first) or 1)
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * part:.1f}"

    def y(self, value: float) -> str:
        """Returns the vertical coordinate of a value."""
        part = (value - self.low) / ((self.high - self.low) or 1)
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part:.1f}"

    def svg(self, label: str, strokes: Sequence[str]) -> Markup:
        """Returns the drawing of the axes and the given strokes."""
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
            *(
                f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                f'y1="{self.y(t)}" y2="{self.y(t)}"/>'
                f'<text x="{LEFT - 7}" y="{self.y(t)}" dy="3.5" text-anchor="end">{short(t)}</text>'
                for t in self.y_ticks
            ),
            *(
                f'<text x="{self.x(t)}" y="{HEIGHT - 7}" text-anchor="middle">{short(t)}</text>'
                for t in self.x_ticks
            ),
        ]
        return Markup("".join([*parts, *strokes]) + "</svg>")


def _stroke(frame: _Frame, bins: Sequence[Bin], style: str) -> str:
    if len(bins) == 1:
        x, y = frame.x(bins[0][0]), frame.y(bins[0][2])
        line = f'<polyline class="{style}" points="{x},{y}"/>'
        return f'{line}<circle class="dot {style}" cx="{x}" cy="{y}" r="3"/>'
    points = " ".join(f"{frame.x(s)},{frame.y(v)}" for s, _, v, _ in bins)
    return f'<polyline class="{style}" points="{points}"/>'


def _binned(points: Points) -> list[Bin]:
    """Returns (step, lowest, mean, highest) of at most MAX_POINTS groups of adjacent points."""
    size = -(-len(points) // MAX_POINTS)
    bins = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part]
        steps = [step for step, _ in part]
        mean = sum(values) / len(values)
        bins.append((sum(steps) / len(steps), min(values), mean, max(values)))
    return bins


def _ticks(low: float, high: float, count: int, integer: bool = False) -> list[float]:
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        return [low]
    ticks = MaxNLocator(count, integer=integer, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(t) for t in ticks]


def short(value: float) -> str:
    """Formats a tick's label: 1500 as "1500", 25000 as "25k", 0.0005 as "5e-4"."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    if size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


# quantities comparable across all runs; others are parts or consequences of the loss
ALIKE = ("lr", "weight_decay", "images_per_s", "data_wait")
STYLES = 6  # line styles in the style sheet


def training_overlays(runs: Sequence[RunFiles]) -> list[Curve]:
    """Returns the curves of several runs together, for each number logged by the steps.

    The loss, and quantities that depend on it, are drawn together only for runs with the same
    objective and data.
    """
    apart = [_trained_as(files) for files in runs]
    return _overlays(runs, [training_points(files.rows) for files in runs], apart)


def health_overlays(runs: Sequence[RunFiles]) -> list[Curve]:
    """Returns the curves of several runs together, for each health measure."""
    return _overlays(runs, [health_points(files.rows) for files in runs], [""] * len(runs))


def set_apart(runs: Sequence[RunFiles]) -> bool:
    """Returns true if some runs differ in objective or data, so their losses cannot be compared."""
    return len({_trained_as(files) for files in runs}) > 1


def _trained_as(files: RunFiles) -> str:
    """Returns a key that is equal for runs with comparable losses; unique if this is not known."""
    known = {name: files.config.get(name) for name in ("objective", "data")}
    if not isinstance(known["objective"], dict):
        known["run"] = files.label
    return json.dumps(known, sort_keys=True)


def _overlays(
    runs: Sequence[RunFiles], points: Sequence[Mapping[str, Points]], apart: Sequence[str]
) -> list[Curve]:
    """Draws the runs of equal key `apart` together, and quantities in ALIKE for all runs."""
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
