"""The scores of one run as ``nd evaluate`` left them: a summary, one row per image, what they are comparable with."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import read_json

BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Score:
    """One metric over the images: mean, 95% bootstrap interval over images, the value by chance (None: none known)."""

    mean: float
    lo: float
    hi: float
    chance: float | None = None
    better: str = "higher"


@dataclass(frozen=True)
class RunScores:
    """All scores of one run, and what must agree before they may stand in one table."""

    path: Path
    protocol: str  # name and version
    test_set: str  # hash of the image ids
    scores: dict[str, Score]
    n_images: int
    n_repeats: int
    oracle: bool
    simulated: bool
    control: str
    transductive: bool = False  # voxels or predictions were scaled with statistics of test images
    settings: dict[str, Any] = field(default_factory=dict)  # all that the protocol says of how a score is made
    settings_hash: str = ""
    aggregation: str = ""  # of repeats and images
    weights: dict[str, str] = field(default_factory=dict)  # 12 digits of SHA-256, or "random", by network; old: none

    @property
    def comparable(self) -> tuple[str, str, str, int, str]:
        """Protocol and its settings, test set, number of images, aggregation: equal for all rows of a table."""
        return self.protocol, self.settings_hash, self.test_set, self.n_images, self.aggregation


def read_per_image(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of ``per_image.csv`` by name, each (n,); ``image_id`` is one of them. Empty cells are NaN."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Remove its folder and run `nd evaluate` again.") from None


def _score(given: dict[str, Any]) -> Score:
    return Score(given["mean"], given["lo"], given["hi"], given.get("chance"), given.get("better", "higher"))


def read_scores(folder: Path) -> RunScores:
    """Read ``scores.json`` of an evaluate run."""
    given = read_json(folder / "scores.json")
    try:
        return RunScores(
            path=folder,
            protocol=f"{given['protocol']['name']} v{given['protocol']['version']}",
            test_set=given["test_set"],
            scores={name: _score(score) for name, score in given["metrics"].items()},
            n_images=given["n_images"],
            n_repeats=given["n_repeats"],
            oracle=given["oracle"],
            simulated=given["simulated"],
            control=given["control"],
            transductive=given.get("transductive", False),
            settings=given["protocol"].get("settings", {}),
            settings_hash=given["protocol"].get("hash", ""),
            aggregation=given.get("aggregation", ""),
            weights=given.get("weights", {}),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'scores.json'} lacks {error}. Remove its folder and run `nd evaluate` again."
        ) from None
