"""The jobs of a multirun as points: the values of its swept keys, each with its configuration; and Hydra's folder.

Run folders hold what jobs make. Hydra makes a folder for every sweep and job beside them, which is of use only where a
launcher writes its logs there.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nd.config.overrides import Reading, quoted
from nd.config.schema import Config

HYDRAS_OWN = "multirun.yaml"  # what Hydra writes into every folder of a sweep


@dataclass(frozen=True)
class Point:
    """One job of a sweep: the swept keys with their values as typed, and its configuration."""

    values: dict[str, str]
    cfg: Config


def points_of(reading: Reading, compose: Callable[[list[str]], Config]) -> list[Point]:
    """Return all jobs of a grid in Hydra's order."""
    swept = [one.key for one in reading.given if len(one.values) > 1]
    found = []
    for combination in reading.combinations(limit=math.inf):
        pairs = (text.partition("=") for text in combination)
        values = {key: value.strip("'\"") for key, _, value in pairs if key in swept}
        found.append(Point(values, compose(combination)))
    return found


def sweep_folder(reading: Reading, cfg: Config) -> tuple[Path, list[str]]:
    """Return a new folder for Hydra's files of a sweep, and the override that names it; none where one was given."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(now))
    folder = Path(cfg.paths.runs) / "multirun" / f"{stamp}-{int(now % 1 * 1e6):06d}"
    given = any(text.startswith("hydra.sweep.dir=") for text in reading.hydra)
    return folder, [] if given else [f"hydra.sweep.dir={quoted(str(folder))}"]


def is_empty_sweep(folder: Path) -> bool:
    """Whether a folder of a sweep holds nothing but empty folders and what Hydra writes into every one."""
    return all(item.is_dir() or item == folder / HYDRAS_OWN for item in folder.rglob("*"))


def remove_empty(folder: Path) -> None:
    """Remove the folder of a sweep that has ended where it is empty, and the one that it lies in where that is too."""
    if folder.is_dir() and is_empty_sweep(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            shutil.rmtree(folder.parent, ignore_errors=True)
