"""The scores of one run: ``scores.json`` and ``per_image.csv`` as ``nd evaluate`` writes them and tables read them.

N images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.evaluation.summary import AGAIN, read_summary
from nd.files import unreadable
from nd.metrics.intervals import bootstrap_interval
from nd.metrics.measures import columns
from nd.runs.outputs import output_of

NAME_WIDTH = 20  # of the column of names, unless one is longer
PerImage = dict[str, NDArray[np.float64]]  # (N,) by metric; as read, image_id is one of them


# ---- written


def one_metric(name: str, values: NDArray[np.float64], n_boot: int) -> dict[str, Any]:
    """Return what ``scores.json`` says of a column.

    Args:
        name: the column, of ``nd.metrics.measures.columns``.
        values: (N,) one score per image; NaN where there is none.
        n_boot: resamples of the interval.

    Returns:
        Mean and 95% interval over images, the number of images, the value by chance, and which way is better.
    """
    interval, metric = bootstrap_interval(values, n_boot), columns()[name]
    return {
        "mean": interval.mean, "lo": interval.lo, "hi": interval.hi, "n": interval.n,
        "chance": metric.chance, "better": metric.better,
    }  # fmt: skip


def per_image_csv(image_ids: NDArray[np.int32], scores: PerImage) -> str:
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
    order = {name: place for place, name in enumerate(columns())}  # a file has them by name
    lines = [
        f"protocol {protocol['name']} v{protocol['version']}: {summary['n_images']} images, "
        f"{summary['n_repeats']} repeats, 95% intervals over images"
    ]
    if selection := summary.get("selection"):
        lines[0] += f"; {selection['n']} of {selection['of']} images, decoded with {selection['at_least']} or more"
    for name, score in sorted(summary["metrics"].items(), key=lambda pair: order.get(pair[0], len(order))):
        arrow = "up" if score["better"] == "higher" else "down"
        chance = "" if score["chance"] is None else f"  chance {score['chance']:.2f}"
        lines.append(
            f"  {name:<{width}} {score['mean']:7.4f}  [{score['lo']:.4f}, {score['hi']:.4f}]  {arrow:<4}{chance}"
        )
    return "\n".join(line.rstrip() for line in lines)


# ---- read


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
    scores: dict[str, Score]  # also of retrieval by decoded targets, which has no scores per image
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
    decoded: dict[str, Any] = field(default_factory=dict)  # predict ``run`` and ``diversity`` of what was decoded
    same_images: dict[str, str] = field(default_factory=dict)  # training images that "equal" test ones, or are "near"
    voxels: dict[str, Any] | None = None  # what could be explained of the subject's voxels, where it is known

    @property
    def comparable(self) -> tuple[str, str, str, int, str]:
        """Protocol and its settings, test set, number of images, aggregation: equal for all rows of a table."""
        return self.protocol, self.settings_hash, self.test_set, self.n_images, self.aggregation


def read_per_image(path: Path) -> PerImage:
    """Return the columns of ``per_image.csv`` by name, each (N,); ``image_id`` is one of them. Empty cells are NaN.

    Raises:
        UserError: no such file, another one, one that lacks metrics of ``scores.json``, or one that was changed.
    """
    output_of(path.parent, path.name, AGAIN)
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            head, *rows = list(csv.reader(handle)) or [[]]
        values = np.array([[float(cell or "nan") for cell in row] for row in rows], np.float64)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, csv.Error) as error:  # rows of different lengths among them
        reason = "a row of another length" if "inhomogeneous" in str(error) else error
        raise UserError(f"{path} is no table of scores ({reason}). {AGAIN}") from None
    found = dict(zip(head, values.T, strict=False))
    metrics = read_summary(path.parent)["metrics"] if path.with_name("scores.json").exists() else {}
    if problem := _misfit(head, values, metrics):
        raise UserError(f"{path} is no table of scores: {problem}. {AGAIN}")
    return found


def evenly_ranked(values_N: NDArray[np.float64], n_shown: int) -> NDArray[np.intp]:
    """Return positions of ``n_shown`` values from highest to lowest, evenly spaced in rank; ties by position.

    >>> evenly_ranked(np.array([0.1, 0.4, 0.3, 0.2]), 3).tolist()
    [1, 3, 0]
    """
    order = np.argsort(-values_N, kind="stable")
    ranks = np.linspace(0, len(order) - 1, min(max(0, n_shown), len(order))).round().astype(int)
    return order[np.unique(ranks)]


def _misfit(head: list[str], values: NDArray[np.float64], metrics: Iterable[str]) -> str:
    """Say what is wrong with the header and the rows of a table of scores; an empty string where nothing is."""
    if values.ndim != 2 or values.shape[1] != len(head) or len(set(head)) != len(head):
        return "it has no rows, or rows of another length than its header"
    if absent := [name for name in ("image_id", *metrics) if name not in head]:
        return f"it has no column {absent[0]}"
    ids = values[:, head.index("image_id")]
    if len(np.unique(ids)) != len(ids) or not np.array_equal(ids, np.floor(ids)):
        return "its image_id are not different whole numbers"
    return ""


def _score(given: dict[str, Any]) -> Score:
    return Score(given["mean"], given["lo"], given["hi"], given.get("chance"), given.get("better", "higher"))


def read_scores(folder: Path) -> RunScores:
    """Return the scores of an evaluate run; errors as of ``read_summary``."""
    given = read_summary(folder)
    return RunScores(
        path=folder,
        protocol=f"{given['protocol']['name']} v{given['protocol']['version']}",
        test_set=given["test_set"],
        scores={name: _score(score) for name, score in {**given["metrics"], **given.get("retrieval", {})}.items()},
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
        decoded=given.get("decoded", {}),
        same_images=given.get("same_images", {}),
        voxels=given.get("voxels"),
    )
