"""Are edge maps and colour mosaics decoded at all, and does the cycle stage help? Scenes, simulated fMRI, subject 1.

    python experiments/scenes-cycle/compare.py [--seeds 1] [--without "cycle, images with voxels alone"] [override ...]

With one seed and without one way, as above, it took 27 minutes of half a CPU core. Three seeds have not been run.
Trains what is missing through `nd train` with all sessions and with the first half of them, predicts the maps of the
test images, and correlates each with its true map. Beside mapper=cycle stand its first two stages alone, the same
without images that have no voxels, ridge regression, and the mean map of the training images. Intervals are
bootstrapped over images, differences are paired by image; seeds are averaged within an image. Writes results.json
beside itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import compose
from nd.data.prepared import mean_betas, open_subject, split_of
from nd.extract import extract
from nd.files import write_json
from nd.mappers.checkpoint import checkpoint_path, read_details
from nd.mappers.folds import origin_of, predict_fold
from nd.metrics.correlation import pearson
from nd.metrics.intervals import Interval, bootstrap_interval, paired_difference
from nd.prepare import prepare
from nd.targets.store import TargetStore, store_path
from nd.train import train

HERE = Path(__file__).parent
BASE = ["experiment=scenes", "table=", "method=souldiffuser", "subject.roi=early+ventral"]
TARGETS = ("edge", "colour")
SESSIONS = {"all sessions": 0, "half of them": 9}
HOW = {  # fields of the mapper of the target in question
    "cycle": ["name=cycle"],
    "two stages": ["name=cycle", "cycle_steps=0"],
    "cycle, images with voxels alone": ["name=cycle", "unlabelled=false"],
    "ridge": ["name=ridge"],
}
PAIRS = [
    ("cycle", "mean map"),
    ("cycle", "two stages"),
    ("cycle", "cycle, images with voxels alone"),
    ("cycle", "ridge"),
]


def main(words: list[str]) -> None:
    """Compare everything and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="networks trained of each kind")
    parser.add_argument("--without", action="append", default=[], choices=list(HOW), help="what to leave out")
    asked, given = parser.parse_known_args(words)
    hows = {name: how for name, how in HOW.items() if name not in asked.without}
    base = [*BASE, *given]
    prepare(compose(base))
    record: dict[str, Any] = {
        "overrides": [text for text in given if not text.startswith("paths.")], "seeds": asked.seeds,
    }  # fmt: skip
    for target in TARGETS:
        extract(compose([*base, f"target={target}"]))
        for sessions, n in SESSIONS.items():
            of = [*base, f"target={target}", f"subject.sessions={n}"]
            rows = {"mean map": mean_map(compose(of))}
            rows |= {name: over_seeds(of, target, how, asked.seeds) for name, how in hows.items()}
            record[f"{target}, {sessions}"] = compared(rows) | sizes(compose(of))
            write_json(HERE / "results.json", record)
    print(f"wrote {HERE / 'results.json'}")


def over_seeds(of: list[str], target: str, how: list[str], n_seeds: int) -> NDArray[np.float64]:
    """Correlation of each test image (N,), averaged over seeds; ridge draws nothing."""
    mapper = f"method.targets.{target}.mapper"
    fields = [f"{mapper}.{field}" for field in how]
    seeds = [[f"{mapper}.seed={seed}"] for seed in range(n_seeds)] if "name=cycle" in how else [[]]
    return np.asarray(np.mean([decoded(compose([*of, *fields, *seed])) for seed in seeds], axis=0))


def decoded(cfg: Config) -> NDArray[np.float64]:
    """Train, predict the test images, and correlate every map with its own."""
    folder, subject, split, store = train(cfg), open_subject(cfg), split_of(cfg), TargetStore(store_path(cfg))
    origin = origin_of(cfg, subject, split, 0, store.fingerprint)
    test = split.folds[0].test
    return correlations(predict_fold(folder, origin, mean_betas(subject, test), "nd train"), store.rows(test))


def mean_map(cfg: Config) -> NDArray[np.float64]:
    """What the mean map of the training images has."""
    fold, store = split_of(cfg).folds[0], TargetStore(store_path(cfg))
    true = store.rows(fold.test)
    return correlations(np.broadcast_to(store.rows(fold.train).mean(0), true.shape), true)


def correlations(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) of maps (N, ...)."""
    found = pearson(*(torch.from_numpy(np.ascontiguousarray(x)).flatten(1) for x in (predicted, true)))
    return found.numpy()


def sizes(cfg: Config) -> dict[str, Any]:
    """How many images there were, and how the stages of the first seed went."""
    details = read_details(checkpoint_path(train(cfg), 0))["details"]
    return {name: details[name] for name in ("n_images", "n_unlabelled", "stages")}


def compared(rows: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Means with 95% intervals, and paired differences."""
    scores = {name: ends(bootstrap_interval(values)) for name, values in rows.items()}
    return {
        "scores": scores,
        "differences": {
            f"{a} minus {b}": ends(paired_difference(rows[a], rows[b])) for a, b in PAIRS if {a, b} <= set(rows)
        },
    }


def ends(found: Interval) -> list[float]:
    """Mean, lower and upper end."""
    return [round(value, 4) for value in (found.mean, found.lo, found.hi)]


if __name__ == "__main__":
    main(sys.argv[1:])
