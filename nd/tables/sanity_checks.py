"""Whether scores mean what they seem to: every method between its floors and its ceiling, and what the controls say.

Per method and metric: the best floor (what needs no reconstruction), the best oracle (what the true features of the
test images give), and the share of the way from one to the other. Findings are what a reader should know first: a
method that does not beat a floor or its own control, one that reaches an oracle and so must have been told, one whose
images are those of another row, a control above chance, a metric whose floor is as good as its oracle. Beside them:
how varied the decoded targets are, and how much of the voxels could be explained at all.

Differences are over the same images, with 95% intervals; no correction is made for their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.evaluation.scores import PerImage, Score
from nd.metrics.diversity import Diversity
from nd.metrics.intervals import Interval, paired_difference
from nd.tables.rows import TableRow
from nd.tables.specs import Column

NEAR = 0.9  # of the way from the best floor to the oracle: further than decoding from measured voxels comes
SAME_SHARE = 0.5  # of the images with the very scores of another row, from which on it is said
SAME = 1e-9  # images stored as bytes and scored alike agree to the last bits of float32 sums
NOT_JUDGED = ("consistency",)  # how alike repeats are is no quality: a constant image is perfectly consistent
SAME_MEANS = {
    "floor": "it shows what that floor shows, which is no reconstruction",
    "oracle": "its images were made from the true features of the test images: test targets have leaked",
    "control": "it shows the same whatever the voxels are",
}
NO_BETTER_MEANS = {
    "floor": "",
    "control": ": nothing here shows that it uses the voxels",
}


@dataclass(frozen=True)
class Judged:
    """A row as it is judged: its role, its scores, and those of every image in the order of their ids."""

    label: str
    role: str
    subject: str
    scores: dict[str, Score]
    per_image: PerImage


@dataclass(frozen=True)
class Standing:
    """One method's mean score of one metric, the best floor and oracle, and the share of the way between them.

    NaN: there is no such row, or no room between the two.
    """

    label: str
    subject: str
    metric: str
    score: float
    floor: float
    oracle: float
    share: float


@dataclass(frozen=True)
class Finding:
    """What is to be said of a row: ``text`` without numbers, ``metric`` (empty: of the row as a whole) and interval."""

    label: str
    subject: str
    text: str
    metric: str = ""
    difference: Interval | None = None


@dataclass(frozen=True)
class Decoded(Diversity):
    """That of one target, and the rows that share it."""

    labels: tuple[str, ...]
    subject: str
    target: str


@dataclass(frozen=True)
class SanityChecks:
    """All standings and findings of a table, and what its runs say of decoded targets and voxels.

    ``voxels``: by subject what could be explained of its voxels (``nd.evaluation.brain_scores.voxel_ceiling``).
    """

    standings: list[Standing] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    voxels: dict[str, dict[str, Any]] = field(default_factory=dict)


def sanity_checks(rows: Sequence[TableRow], columns: Sequence[Column]) -> SanityChecks:
    """Check the rows of a table; nothing where no row is a floor, an oracle or a control."""
    judged = [Judged(row.row.label, row.row.role, row.subject, row.run.scores, row.per_image) for row in rows]
    standings, findings = judge(judged, [column.metric for column in columns])
    if not standings:
        return SanityChecks(standings, findings)
    findings = [*_same_images(rows), *findings]
    voxels = {row.subject: row.run.voxels for row in rows if row.run.voxels}
    return SanityChecks(standings, findings, decoded_of(rows), voxels)


def _same_images(rows: Sequence[TableRow]) -> Iterator[Finding]:
    """Say of every subject which test images are training images too."""
    for subject, found in {row.subject: row.run.same_images for row in rows}.items():
        for kind, how in (("equal", "are"), ("near", "are nearly")):
            if kind in found:
                text = f"training images {how} test images ({found[kind]}): naming one of those scores for it"
                yield Finding("images", subject, text)


def decoded_of(rows: Sequence[TableRow]) -> list[Decoded]:
    """Return the diversity of what was decoded for the rows with role ``method``, rows that share it together."""
    sharing: dict[tuple[str, str], list[TableRow]] = {}
    for row in rows:
        for target in row.run.decoded.get("diversity", {}) if row.row.role == "method" else ():
            sharing.setdefault((row.run.decoded["run"], target), []).append(row)
    return [
        Decoded(labels=tuple(row.row.label for row in group), subject=group[0].subject, target=target, **found)
        for (_, target), group in sharing.items()
        for found in (group[0].run.decoded["diversity"][target],)
    ]


def judge(rows: Sequence[Judged], metrics: Sequence[str]) -> tuple[list[Standing], list[Finding]]:
    """Judge the rows with role ``method`` by those with role ``floor``, ``oracle`` and ``control``, by subject.

    Args:
        rows: of one table.
        metrics: its columns; those that are no quality are left out.

    Returns:
        Where every method stands in every metric, and what is to be said.
    """
    metrics = [metric for metric in metrics if not metric.startswith(NOT_JUDGED)]
    standings: list[Standing] = []
    findings: list[Finding] = []
    for subject in dict.fromkeys(row.subject for row in rows):
        own = [row for row in rows if row.subject == subject]
        if not {row.role for row in own} & {"floor", "oracle", "control"}:
            continue
        crowded = [metric for metric in metrics if not has_room(own, metric)]
        findings += [*_without_room(own, crowded), *_controls(own, metrics)]
        for method in (row for row in own if row.role == "method"):
            findings += _of_method(method, own, metrics, crowded)
            standings += [standing(method, own, m, m not in crowded) for m in metrics if m in method.scores]
    return standings, findings


def standing(method: Judged, rows: Sequence[Judged], metric: str, room_is_sure: bool) -> Standing:
    """Place a method between the best floor and the best oracle, where there is room between them."""
    score = method.scores[metric].mean
    floor, oracle = (_mean(best(rows, role, metric), metric) for role in ("floor", "oracle"))
    room = oracle - floor
    share = (score - floor) / room if room_is_sure and room else float("nan")
    return Standing(method.label, method.subject, metric, score, floor, oracle, share)


def best(rows: Sequence[Judged], role: str, metric: str) -> Judged | None:
    """The row of a role with the best mean of a metric; None where none has it."""
    having = [row for row in rows if row.role == role and metric in row.scores and np.isfinite(row.scores[metric].mean)]
    return max(having, key=lambda row: _sign(row, metric) * row.scores[metric].mean, default=None)


def has_room(rows: Sequence[Judged], metric: str) -> bool:
    """Whether the best oracle is surely above the best floor; True where one of them is missing."""
    floor, oracle = best(rows, "floor", metric), best(rows, "oracle", metric)
    if floor is None or oracle is None:
        return True
    gain = better_by(oracle, floor, metric)
    return gain is not None and gain.lo > 0


def better_by(a: Judged, b: Judged, metric: str) -> Interval | None:
    """By how much ``a`` is better than ``b``, whichever way the metric points; None without images in common."""
    if metric not in a.per_image or metric not in b.per_image:
        return None
    x, y = a.per_image[metric], b.per_image[metric]
    if len(x) != len(y) or np.isnan(x - y).all():
        return None
    return paired_difference(x, y) if _sign(a, metric) > 0 else paired_difference(y, x)


def _without_room(rows: Sequence[Judged], metrics: Sequence[str]) -> Iterator[Finding]:
    for metric in metrics:
        floor, oracle = best(rows, "floor", metric), best(rows, "oracle", metric)
        if floor and oracle:
            text = f"not better than {floor.label} (floor): here the metric cannot tell good images from bad ones"
            yield Finding(oracle.label, oracle.subject, text, metric, better_by(oracle, floor, metric))


def _controls(rows: Sequence[Judged], metrics: Sequence[str]) -> Iterator[Finding]:
    for row in (row for row in rows if row.role == "control"):
        for metric in metrics:
            score = row.scores.get(metric)
            if score is None or score.chance is None:
                continue
            above, sign = [x - score.chance for x in (score.mean, score.lo, score.hi)], _sign(row, metric)
            mean, lo, hi = above if sign > 0 else (-above[0], -above[2], -above[1])
            if lo > 0:
                text = "control above chance: something other than the voxels is used"
                n = len(row.per_image.get(metric, ()))
                yield Finding(row.label, row.subject, text, metric, Interval(mean, lo, hi, n))


def _of_method(method: Judged, rows: Sequence[Judged], metrics: Sequence[str], crowded: Sequence[str]) -> list[Finding]:
    found = [*_same_scores(method, rows)]
    for row in (row for row in rows if row.role in NO_BETTER_MEANS):
        found += _not_better(method, row, metrics)
    for metric in metrics:
        if metric not in crowded:
            found += _too_good(method, rows, metric)
    return found


def _not_better(method: Judged, row: Judged, metrics: Sequence[str]) -> Iterator[Finding]:
    for metric in metrics:
        gain = better_by(method, row, metric)
        if gain is not None and gain.lo <= 0:
            how = "worse" if gain.hi < 0 else "no better"
            text = f"{how} than {row.label} ({row.role}){NO_BETTER_MEANS[row.role]}"
            yield Finding(method.label, method.subject, text, metric, gain)


def _too_good(method: Judged, rows: Sequence[Judged], metric: str) -> Iterator[Finding]:
    """A method above the best oracle, or so near that its interval ends beyond ``NEAR`` of the way from the floor.

    Nearness counts where the oracle's images differ in score: identification at its ceiling is reached honestly.
    """
    oracle = best(rows, "oracle", metric)
    gain = better_by(method, oracle, metric) if oracle else None
    if oracle is None or gain is None:
        return
    floor = best(rows, "floor", metric)
    room = abs(oracle.scores[metric].mean - floor.scores[metric].mean) if floor else 0.0
    if gain.lo > 0:
        text = f"above {oracle.label} (oracle), as no decoder can be: test targets must have leaked"
    elif gain.lo > -(1 - NEAR) * room and _is_telling(oracle, metric):
        text = f"as good as {oracle.label} (oracle), within a tenth of its way from the floor: look for leaked targets"
    else:
        return
    yield Finding(method.label, method.subject, text, metric, gain)


def _same_scores(method: Judged, rows: Sequence[Judged]) -> Iterator[Finding]:
    for row in (row for row in rows if row.role in SAME_MEANS):
        same_N = same_images(method, row)
        if same_N.size and same_N.mean() >= SAME_SHARE:
            n = f"{int(same_N.sum())} of {same_N.size} images"
            text = f"has the very scores of {row.label} ({row.role}) for {n}: {SAME_MEANS[row.role]}"
            yield Finding(method.label, method.subject, text)


def same_images(a: Judged, b: Judged) -> NDArray[np.bool_]:
    """(N,) whether an image has the same scores in both rows, by metrics whose values differ from image to image.

    Empty where there is no such metric: equal ranks of few images say nothing.
    """
    common = [m for m in a.per_image if m in b.per_image and m != "image_id" and not m.startswith(NOT_JUDGED)]
    telling = [m for m in common if _is_telling(b, m)]
    pairs = [(a.per_image[m], b.per_image[m]) for m in telling]
    if not pairs or any(len(x) != len(y) for x, y in pairs):
        return np.zeros(0, bool)
    return np.all([np.isclose(x, y, rtol=0, atol=SAME, equal_nan=True) for x, y in pairs], axis=0)


def _is_telling(row: Judged, metric: str) -> bool:
    """Whether scores differ from image to image, as those of more than half of the images do."""
    values = row.per_image[metric]
    return 2 * len(np.unique(values)) > len(values)


def _sign(row: Judged, metric: str) -> int:
    score = row.scores.get(metric)
    return -1 if score is not None and score.better == "lower" else 1


def _mean(row: Judged | None, metric: str) -> float:
    return float("nan") if row is None else row.scores[metric].mean
