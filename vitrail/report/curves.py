"""Curves as inline SVG, styled by the page, so that they follow its light or dark colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 190  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 10, 26
MAX_POINTS = 240  # a column of pixels each; more would only make the page large

TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "grad_norm": "Gradient norm",
    "images_per_s": "Images per second",
    "data_wait": "Share of time waiting for data",
    "effective_rank": "Effective rank of the features",
    "spread_min": "Spread of the narrowest dimension",
    "spread_mean": "Mean spread of the dimensions",
}
FIRST = ("loss", "lr", "grad_norm", "images_per_s")
LEFT_OUT = ("step", "epoch", "health", "warning", "time", "seconds")


@dataclass(frozen=True)
class Curve:
    """One measured quantity over the steps."""

    name: str
    title: str
    svg: Markup


def training_curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve for every number that the steps logged, the important ones first."""
    names = {name for row in rows for name, value in row.items() if _is_number(value)}
    names -= set(LEFT_OUT)
    order = [*FIRST, *sorted(names - set(FIRST))]
    return _curves(order, [(row.get("step", i), row) for i, row in enumerate(rows)])


def health_curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve for every vital sign."""
    looks = [(row.get("step", i), row["health"]) for i, row in enumerate(rows) if row.get("health")]
    looks = [(step, signs) for step, signs in looks if isinstance(signs, dict)]
    return _curves(sorted({name for _, signs in looks for name in signs}), looks)


def _curves(names: Sequence[str], rows: Sequence[tuple[Any, dict[str, Any]]]) -> list[Curve]:
    curves = []
    for name in names:
        points = [
            (float(step), float(values[name]))
            for step, values in rows
            if _is_number(step) and _is_number(values.get(name))
        ]
        if points:
            title = TITLES.get(name, name.replace("_", " ").capitalize())
            curves.append(Curve(name, title, draw(points, title)))
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw(points: Sequence[tuple[float, float]], title: str) -> Markup:
    """A line through (step, value), with a range behind it where steps share a pixel."""
    bins = _binned(points)
    low, high = min(b[1] for b in bins), max(b[3] for b in bins)
    y_ticks = _ticks(low, high, 4)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last = points[0][0], points[-1][0]
    x_ticks = [t for t in _ticks(first, last, 5, integer=True) if first <= t <= last]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1)

    band = [f"{x(s):.1f},{y(v):.1f}" for s, v, _, _ in bins]
    band += [f"{x(s):.1f},{y(v):.1f}" for s, _, _, v in reversed(bins)]
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, _, v, _ in bins)
    label = f"{title}: from {points[0][1]:.4g} to {points[-1][1]:.4g} over {len(points)} steps"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
            f'<text x="{LEFT - 7}" y="{y(t) + 3.5:.1f}" text-anchor="end">{short(t)}</text>'
            for t in y_ticks
        ),
        *(
            f'<text x="{x(t):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{short(t)}</text>'
            for t in x_ticks
        ),
        f'<polygon class="band" points="{" ".join(band)}"/>',
        f'<polyline class="line" points="{line}"/>',
    ]
    if len(bins) == 1:
        parts.append(f'<circle class="dot" cx="{x(first):.1f}" cy="{y(bins[0][2]):.1f}" r="3"/>')
    return Markup("".join(parts) + "</svg>")


def _binned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(step, lowest, mean, highest) of neighbouring points."""
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
    """A tick's label: 1500 -> "1500", 25000 -> "25k", 0.0005 -> "5e-4"."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    if size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
