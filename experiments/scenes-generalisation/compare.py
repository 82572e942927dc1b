"""Does holding whole clusters out of training cost retrieval more than NeuralDiffuser? Scenes, simulated fMRI, ridge.

    python experiments/scenes-generalisation/compare.py [override ...]      about 10 minutes on one CPU core

Runs every row of table.yaml under both splits (data=scenes, data=scenes_clusters), doing what is missing alone, and
writes results.json beside itself: every row's scores by split, and by metric how far retrieval and NeuralDiffuser fall
from one split to the other. A fall is a difference of means over other test images, so both splits are resampled; which
row falls further is resampled on per-image differences of the two rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config.application import compose
from nd.data.prepared import split_of
from nd.evaluation.scores import read_per_image
from nd.files import write_json
from nd.metrics.intervals import bootstrap_means
from nd.run import run
from nd.table import read_table
from nd.tables.table import Table

HERE = Path(__file__).parent
SPLITS = {"random": "scenes", "clusters": "scenes_clusters"}
METHOD, RETRIEVAL = "NeuralDiffuser (ridge)", "nearest training image"
N_BOOT = 10_000
PerImage = dict[str, NDArray[np.float64]]


def main() -> None:
    """Run both splits and write the record."""
    given = [item for item in sys.argv[1:] if not item.startswith("paths.")]  # where files lie decides nothing
    record: dict[str, Any] = {"overrides": given, "splits": {}}
    scores: dict[str, dict[str, PerImage]] = {}
    for split, data in SPLITS.items():
        cfg = compose([f"table={HERE / 'table.yaml'}", f"data={data}", "trainer.progress=false", *sys.argv[1:]])
        if run(cfg):
            sys.exit(1)
        table = read_table(cfg)
        scores[split] = {row.row.label: read_per_image(row.run.path / "per_image.csv") for row in table.rows}
        cut = split_of(cfg)
        sizes = {"n_train": len(cut.folds[0].seen), "n_test": table.rows[0].run.n_images, "hash": cut.hash}
        record["splits"][split] = {**sizes, "rows": described(table)}
    metrics = [column.metric for column in table.columns]
    record["falls"] = {metric: falls(scores, metric) for metric in metrics}
    write_json(HERE / "results.json", record)


def described(table: Table) -> dict[str, Any]:
    """Mean and interval of every score of the table."""
    metrics = [column.metric for column in table.columns]
    return {
        row.row.label: {m: [s.mean, s.lo, s.hi] for m in metrics if (s := row.run.scores.get(m))} for row in table.rows
    }


def falls(scores: dict[str, dict[str, PerImage]], metric: str) -> dict[str, list[float]]:
    """How far both rows fall, and how much further retrieval does; each (mean, lo, hi)."""
    random, clusters = ({label: rows[label][metric] for label in (METHOD, RETRIEVAL)} for rows in scores.values())
    found = {label: fall(random[label], clusters[label]) for label in (METHOD, RETRIEVAL)}
    further = fall(random[RETRIEVAL] - random[METHOD], clusters[RETRIEVAL] - clusters[METHOD])
    return found | {"retrieval falls further by": further}


def fall(before: NDArray[np.float64], after: NDArray[np.float64]) -> list[float]:
    """Mean of ``before`` minus mean of ``after`` with its 95% percentile interval; the images of each are resampled."""
    means = bootstrap_means(before, N_BOOT, 0) - bootstrap_means(after, N_BOOT, 1)
    return [float(before.mean() - after.mean()), *(float(x) for x in np.quantile(means, [0.025, 0.975]))]


if __name__ == "__main__":
    main()
