"""The measures of `xray` over the layers: a figure for the report and a table for the terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from vitrail.evals.figures.grid import INK, new_figure, save_png

Layers = list[dict[str, Any]]  # result of `xray`

BLUE = "#3d8db4"  # contrast 3.6:1 on white, 4.9:1 on near-black
STYLES: dict[str, dict[str, Any]] = {
    "untrained": {"color": INK, "alpha": 0.75, "linewidth": 1.0, "markersize": 4.0},
    "trained": {"color": BLUE, "alpha": 1.0, "linewidth": 1.8, "markersize": 5.5},
}
BETWEEN, INSIDE = "o", "D"  # markers between two layers, and within one after its attention
WIDTH, ROW, HEAD = 9.6, 2.8, 0.35  # inches: width; heights of a row of panels and of the legend
LEFT, RIGHT, TOP, BOTTOM = 0.55, 0.1, 0.6, 0.5  # inches around the axes of a panel
DPI = 150


class Panel(NamedTuple):
    """A panel of the figure.

    Attributes:
        title: heading of the panel.
        meaning: text below the heading.
        needs: key of a measure that must be present for the panel to be drawn.
        draw: function that draws one encoder's measures into the axes.
    """

    title: str
    meaning: str
    needs: str
    draw: Callable[[Any, Layers, dict[str, Any]], None]


def _rates(axes: Any, layers: Layers, style: dict[str, Any]) -> None:
    """Draws one line through all half-steps: the input of layer ℓ at ℓ - 1, its output at ℓ."""
    points = [(0.0, layers[0]["rate_before"], BETWEEN)]
    for i, layer in enumerate(layers, 1):
        points += [(i - 0.5, layer["rate_half"], INSIDE), (i, layer["rate_after"], BETWEEN)]
    _line(axes, points, style)


def _compressions(axes: Any, layers: Layers, style: dict[str, Any]) -> None:
    """Draws a line per layer, as each layer has its own subspaces."""
    for i, layer in enumerate(layers, 1):
        before, half = layer["compression_before"], layer["compression_half"]
        _line(axes, [(i - 1, before, BETWEEN), (i - 0.5, half, INSIDE)], style)


def _nonzero(axes: Any, layers: Layers, style: dict[str, Any]) -> None:
    _line(axes, [(i, layer["nonzero"], BETWEEN) for i, layer in enumerate(layers, 1)], style)
    axes.set_ylim(-0.05, 1.05)


def _coherence(axes: Any, layers: Layers, style: dict[str, Any]) -> None:
    pairs = [(i, layer["coherence"]) for i, layer in enumerate(layers, 1) if layer["coherence"]]
    x, mean, most = zip(*((i - 0.5, c["mean"], c["max"]) for i, c in pairs), strict=True)
    axes.fill_between(x, mean, most, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, mean, marker=INSIDE, **style)
    axes.set_ylim(-0.05, 1.05)


PANELS = (
    Panel("Coding rate R(Z)", "room that the tokens take, in nats", "rate_after", _rates),
    Panel(
        "Compression term Rᶜ(Z | U)",
        "room within the heads' subspaces, in nats",
        "compression_half",
        _compressions,
    ),
    Panel("Entries that are not zero", "share of all, after the layer", "nonzero", _nonzero),
    Panel(
        "Coherence of the heads' subspaces",
        "0 orthogonal, 1 the same; shade: up to the closest pair",
        "coherence",
        _coherence,
    ),
)


def layers_figure(measured: dict[str, Layers], path: Path) -> Path:
    """Writes a PNG with a panel per measure and the layers on the x axis.

    Args:
        measured: layers of the "trained" and of the "untrained" encoder.
        path: path of the PNG, returned.
    """
    panels = [p for p in PANELS if any(layer[p.needs] for layer in measured["trained"])]
    height = HEAD + ROW * -(-len(panels) // 2)
    figure = new_figure(WIDTH, height, DPI)
    for cell, panel in enumerate(panels):
        left = (cell % 2) * WIDTH / 2 + LEFT
        bottom = height - HEAD - (cell // 2 + 1) * ROW + BOTTOM
        sides = WIDTH / 2 - LEFT - RIGHT, ROW - BOTTOM - TOP
        axes: Any = figure.add_axes(
            (left / WIDTH, bottom / height, sides[0] / WIDTH, sides[1] / height)
        )
        _frame(axes, panel, len(measured["trained"]))
        for kind, style in STYLES.items():
            panel.draw(axes, measured[kind], style)
    figure.legend(
        handles=_handles(measured["trained"]),
        loc="upper center",
        borderaxespad=0.2,
        ncols=4,
        frameon=False,
        labelcolor=INK,
        fontsize=10,
    )
    return save_png(figure, path)


def layers_table(results: dict[str, Any]) -> Table:
    """Returns the trained encoder's layers as a table for the terminal, without empty columns."""
    layers: Layers = results["trained"]
    title = f"x-ray, trained, {results['images']} images"
    table = Table(title=title, title_justify="left")
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "R": lambda layer: _number(layer["rate_after"], 1),
        "R, attention": lambda layer: _step(layer["rate_before"], layer["rate_half"]),
        "Rᶜ, attention": lambda layer: _step(
            layer["compression_before"], layer["compression_half"]
        ),
        "nonzero, %": lambda layer: f"{100 * layer['nonzero']['mean']:.1f}",
        "coherence": lambda layer: _number(layer["coherence"], 2),
    }
    cells = {name: [text(layer) for layer in layers] for name, text in columns.items()}
    shown = {name: column for name, column in cells.items() if set(column) != {""}}
    table.add_column("layer")
    for name in shown:
        table.add_column(name, justify="right")
    for layer, *row in zip(layers, *shown.values(), strict=True):
        table.add_row(layer["layer"], *row)
    return table


def _number(value: dict[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f}"


def _step(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
    """Formats a half-step as "12.3 → 11.8"; an empty string if there is none."""
    if after is None:
        return ""
    return f"{_number(before, 1)} → {_number(after, 1)}"


def _line(
    axes: Any, points: list[tuple[float, dict[str, float] | None, str]], style: dict[str, Any]
) -> None:
    """Draws a line with markers through the points that have a value; the shade is ± 1 std."""
    there = [(x, value["mean"], value["std"], marker) for x, value, marker in points if value]
    if not there:
        return
    x, mean, std, markers = zip(*there, strict=True)
    low = [m - s for m, s in zip(mean, std, strict=True)]
    high = [m + s for m, s in zip(mean, std, strict=True)]
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=style["color"], alpha=style["alpha"], linewidth=style["linewidth"])
    for marker in (BETWEEN, INSIDE):
        chosen = [(a, b) for a, b, m in zip(x, mean, markers, strict=True) if m == marker]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), **style | _marker(marker))


def _marker(marker: str) -> dict[str, Any]:
    return {"marker": marker, "linestyle": "none"}


def _handles(layers: Layers) -> list[Line2D]:
    handles = [Line2D([], [], label=kind, **style) for kind, style in reversed(STYLES.items())]
    if any(layer["rate_half"] for layer in layers):
        dots = {BETWEEN: "between two layers", INSIDE: "inside a layer, after its attention"}
        handles += [
            Line2D([], [], label=label, **STYLES["trained"] | _marker(marker))
            for marker, label in dots.items()
        ]
    return handles


def _frame(axes: Any, panel: Panel, depth: int) -> None:
    axes.set_facecolor("none")
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=20)
    axes.text(0, 1.035, panel.meaning, transform=axes.transAxes, fontsize=9.5, color=INK)
    axes.set_xlabel("layer", fontsize=9.5, color=INK)
    axes.set_xlim(-0.03 * depth, 1.03 * depth)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(colors=INK, labelsize=9.5, length=0)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.7)
    axes.margins(y=0.1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
