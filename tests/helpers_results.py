"""Runs that look finished, made without any model: what tables and reports read, a few pixels in size."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import stimuli_path, write_stimuli
from nd.runs.folder import RunFolder
from nd.runs.identity import reads_predictions, reads_targets

N_IMAGES, SIDE = 8, 6


def config(root: Path) -> Config:
    """The default configuration with everything written below ``root``."""
    cfg = Config()
    for name in ("data", "cache", "runs", "results"):
        setattr(cfg.paths, name, str(root / name))
    return cfg


def fake_stimuli(cfg: Config) -> None:
    """Write the stimuli file, once."""
    path = stimuli_path(cfg)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3)).astype(np.uint8)
        write_stimuli(path, images=images, captions=[["x"]] * N_IMAGES, image_id=np.arange(N_IMAGES))


def fake_images(cfg: Config, repeats: int = 1) -> Path:
    """Finish a reconstruct run whose images are all of one grey, the number of the repeat."""
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as file:
        grey = np.arange(repeats, dtype=np.uint8)[None, :, None, None, None]
        file["images"] = np.broadcast_to(grey, (N_IMAGES, repeats, SIDE, SIDE, 3))
        file["image_id"] = np.arange(N_IMAGES)
    return folder.path


def fake_scores(cfg: Config, scores: dict[str, NDArray[np.float64]], **facts: Any) -> Path:
    """Finish an evaluate run with these scores per image."""
    n = len(next(iter(scores.values())))
    summary = {
        "protocol": {"name": cfg.protocol.name, "version": cfg.protocol.version},
        "test_set": "f00", "n_images": n, "n_repeats": 2, "simulated": cfg.data.simulated,
        "oracle": reads_targets(cfg) and cfg.features == "oracle",
        "control": cfg.control if reads_predictions(cfg) else "none",
        "metrics": {
            name: {"mean": v.mean(), "lo": v.mean() - 0.01, "hi": v.mean() + 0.02, "n": n,
                   "chance": 0.5 if name.startswith("two_way") else None,
                   "better": "lower" if "distance" in name else "higher"}
            for name, v in scores.items()
        },
    }  # fmt: skip
    folder = RunFolder.open(cfg, "evaluate")
    with folder.writing(cfg):
        (folder.path / "scores.json").write_text(json.dumps(summary | facts), encoding="utf-8")
        with open(folder.path / "per_image.csv", "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["image_id", *scores])
            writer.writerows([i, *(float(v[i]) for v in scores.values())] for i in range(n))
    return folder.path
