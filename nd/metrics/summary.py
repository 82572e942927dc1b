"""Per-image scores made into what is written and shown: means with intervals, a CSV table, aligned text."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.metrics.score import METRICS
from nd.metrics.statistics import bootstrap_interval

Scores = dict[str, NDArray[np.float64]]
NAME_WIDTH = 20  # of the column of names, unless one is longer


def one_metric(name: str, values: NDArray[np.float64], n_boot: int) -> dict[str, Any]:
    """Mean and 95% interval over images, the number of images, the value by chance, and which way is better."""
    interval, metric = bootstrap_interval(values, n_boot), METRICS[name]
    return {
        "mean": interval.mean, "lo": interval.lo, "hi": interval.hi, "n": interval.n,
        "chance": metric.chance, "better": metric.better,
    }  # fmt: skip


def per_image_csv(image_ids: NDArray[np.int32], scores: Scores) -> str:
    """One row per image; numbers keep all their digits, so that differences between runs can be formed later."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", *scores])
    for row, image_id in enumerate(image_ids):
        values = [float(column[row]) for column in scores.values()]
        writer.writerow([int(image_id), *("" if np.isnan(value) else repr(value) for value in values)])
    return text.getvalue()


def score_table(summary: dict[str, Any]) -> str:
    """The scores as aligned text."""
    protocol, width = summary["protocol"], max([NAME_WIDTH, *map(len, summary["metrics"])])
    lines = [
        f"protocol {protocol['name']} v{protocol['version']}: {summary['n_images']} images, "
        f"{summary['n_repeats']} repeats, 95% intervals over images"
    ]
    for name, score in summary["metrics"].items():
        arrow = "up" if score["better"] == "higher" else "down"
        chance = "" if score["chance"] is None else f"  chance {score['chance']:.2f}"
        lines.append(
            f"  {name:<{width}} {score['mean']:7.4f}  [{score['lo']:.4f}, {score['hi']:.4f}]  {arrow:<4}{chance}"
        )
    return "\n".join(line.rstrip() for line in lines)
