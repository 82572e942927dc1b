"""Plots of a report: scores with their intervals, and the tuning curve of guidance. Drawn as SVG, without a display."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from nd.results.specs import Column
from nd.results.table import Table

ROLE_COLOURS = {
    "method": "#1f6fb2", "reference": "#c27c0e", "oracle": "#2c8a57", "control": "#b5423c", "floor": "#7a7f87",
}  # fmt: skip
INK, FAINT = "#2b2f36", "#c9ced6"
STYLE: Any = {
    "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "nd",
}  # fmt: skip


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG; equal figures give equal bytes."""
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()


def score_plot(table: Table) -> Figure:
    """One panel per column of the table: each row's mean and interval, and the level of chance as a dashed line."""
    columns = table.columns
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 2.5 * across, down * (0.75 + 0.24 * len(table.rows))), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharey=True)
        for panel, column in zip(panels.flat, columns, strict=False):
            _draw_scores(panel, table, column)
        for panel in panels.flat[len(columns) :]:
            panel.set_visible(False)
    return figure


def _draw_scores(panel: Any, table: Table, column: Column) -> None:
    scale = 100.0 if column.percent else 1.0
    for line, row in enumerate(table.rows):
        score = row.run.scores.get(column.metric)
        if score is None:
            continue
        colour = ROLE_COLOURS[row.row.role]
        panel.plot([scale * score.lo, scale * score.hi], [line, line], color=colour, linewidth=2.2, alpha=0.55)
        panel.plot([scale * score.mean], [line], "o", color=colour, markersize=5)
    chance = table.chance(column)
    if chance is not None:
        panel.axvline(scale * chance, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    names = [row.row.label + (f" {row.subject}" if len(table.subjects) > 1 else "") for row in table.rows]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="x", color=FAINT, linewidth=0.5)
    panel.tick_params(length=0)
    panel.set_axisbelow(True)
    panel.set_title(table.arrow(column) + (" (%)" if column.percent else ""), fontsize=10, loc="left")


def tuning_plot(tuning: dict[str, Any]) -> Figure:
    """The score on validation images over kappa, one line per eta, with the chosen point marked.

    Args:
        tuning: as in ``tuning.json``: ``metric``; ``points``, each with ``kappa``, ``eta`` and the metric; ``chosen``
            with ``kappa`` and ``eta``; ``n_images``; and perhaps ``oracle_points``, the same for true features.
    """
    metric, chosen = tuning["metric"], tuning["chosen"]
    series = {"decoded features": tuning["points"], "true features (oracle)": tuning.get("oracle_points", [])}
    series = {title: points for title, points in series.items() if points}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 4.2 * len(series), 3.2), layout="constrained")
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for panel, (title, points) in zip(panels, series.items(), strict=True):
            _draw_tuning(panel, points, metric, chosen)
            panel.set_title(title, fontsize=10, loc="left")
        panels[0].set_ylabel(f"{metric}, {tuning['n_images']} validation images")
        panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_tuning(panel: Any, points: list[dict[str, Any]], metric: str, chosen: dict[str, float]) -> None:
    guided = [point for point in points if point["kappa"] > 0]
    etas = sorted({point["eta"] for point in guided})
    for k, eta in enumerate(etas):
        line = sorted((point["kappa"], point[metric]) for point in guided if point["eta"] == eta)
        colour = mpl.colormaps["viridis"](0.1 + 0.75 * k / max(1, len(etas) - 1))
        panel.plot(*zip(*line, strict=True), "o-", color=colour, markersize=4, label=f"eta {eta:g}")
    for unguided in [point[metric] for point in points if point["kappa"] == 0][:1]:
        panel.axhline(unguided, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="no guidance")
    best = [p[metric] for p in points if (p["kappa"], p["eta"]) == (chosen["kappa"], chosen["eta"])]
    label = f"chosen: kappa {chosen['kappa']:g}, eta {chosen['eta']:g}"
    kappas = [chosen["kappa"]] * len(best)
    panel.plot(kappas, best, "o", markersize=12, fillstyle="none", color=INK, linestyle="none", label=label)
    panel.set_xscale("log")
    panel.set_xticks(sorted({point["kappa"] for point in guided}))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_xlabel("kappa, guidance scale")
    panel.grid(color=FAINT, linewidth=0.5)
