"""Which lines the page draws: learning curves, tuned guidance, and losses of an optimisation of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nd.tables.learning_curves import Learning, Stage
from nd.tables.line_chart import Line, LineChart, Points

SHOWN_SCORES = ("correlation", "retrieval")  # of those on validation images
Losses = Mapping[tuple[int, int], Points]  # by image id and repeat


def learning_charts(learnings: Sequence[Learning]) -> dict[str, list[LineChart]]:
    """Return the learning curves of trained networks, by the rows that read them.

    Every fold of the split is a line; a ring marks the weights that were kept. Scores that none has are left out.
    """
    charts: dict[str, list[LineChart]] = {}
    for learning in learnings:
        every = [curve for stage in learning.stages for curve in stage.curves]
        losses = [y for curve in every for points in curve.losses.values() for _, y in points if math.isfinite(y)]
        for stage in learning.stages:
            made = _stage_charts(learning.target, stage, losses)
            charts.setdefault(", ".join(learning.rows), []).extend(made)
    return charts


def _stage_charts(target: str, stage: Stage, all_losses: Sequence[float]) -> Iterator[LineChart]:
    """The charts of one stage; losses of all stages have one scale."""
    losses = [Line(name, points) for curve in stage.curves for name, points in curve.losses.items()]
    yield LineChart(f"{target}, {stage.title}: training loss", "epochs", "training loss", losses, y_over=all_losses)
    scores = [
        Line(name, curve.scores[name], ring=curve.kept)
        for name in SHOWN_SCORES
        for curve in stage.curves
        if curve.scores.get(name)
    ]
    if scores:
        yield LineChart(f"{target}, {stage.title}: validation images", "epochs", "score", scores)


def tuning_charts(tuning: Mapping[str, Any]) -> list[LineChart]:
    """Return the score on validation images over kappa, one line per eta, with the chosen point marked.

    Args:
        tuning: as in ``tuning.json``: ``metric``; ``points``, each with ``kappa``, ``eta`` and the metric; ``chosen``
            with ``kappa`` and ``eta``; ``n_images``; and perhaps ``oracle_points``, the same for true features.

    Raises:
        KeyError, TypeError, ValueError: it is no tuning record.
    """
    metric, n_images = str(tuning["metric"]), int(tuning["n_images"])
    kinds = {"decoded features": tuning["points"], "true features (oracle)": tuning.get("oracle_points", [])}
    return [
        LineChart(
            f"{title}, {n_images} validation images",
            "kappa, guidance scale",
            metric,
            list(_tuning_lines(points, metric, tuning["chosen"])),
            log_x=True,
            ring_name=f"chosen: kappa {tuning['chosen']['kappa']:g}, eta {tuning['chosen']['eta']:g}",
        )
        for title, points in kinds.items()
        if points
    ]


def _tuning_lines(points: Sequence[Mapping[str, Any]], metric: str, chosen: Mapping[str, float]) -> Iterator[Line]:
    guided = [point for point in points if point["kappa"] > 0]
    for eta in sorted({point["eta"] for point in guided}):
        line = sorted((float(p["kappa"]), float(p[metric])) for p in guided if p["eta"] == eta)
        yield Line(f"eta {eta:g}", line, ring=chosen["kappa"] if eta == chosen["eta"] else None)
    for unguided in [float(point[metric]) for point in points if point["kappa"] == 0][:1]:
        yield Line("no guidance", [(1.0, unguided)], level=True)


def loss_chart(title: str, losses: Losses) -> LineChart:
    """Return the loss of an optimisation over its iterations, a line for each image and repeat."""
    lines = [Line(f"image {image_id}", points) for (image_id, _), points in losses.items()]
    return LineChart(title, "iterations", "loss", lines)
