"""Scores that others have published, as data: ``published/<set>.yaml``, one file for each way they were computed.

A table asks for a whole set (``nsd982``) or one row of it (``nsd982/brain_diffuser``). Every row says where it was
seen:

``paper``   in the paper that reports it first
``output``  in the saved output of released code
``quoted``  only in a text of others that quotes or summarises it

and on what its protocol and number of images rest: ``stated``, ``code``, ``inferred`` or ``unchecked``. Shares are
between 0 and 1; a score that was not seen is null, never filled in. Published values have no scores per image, so they
take part in no paired comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nd.errors import unknown
from nd.tables.yaml_files import build, build_all, read_yaml, refuse

FOLDER = Path(__file__).with_suffix("")
SEEN = {"paper": "seen in the paper", "output": "seen in output of released code", "quoted": "quoted by others"}
BASES = ("stated", "code", "inferred", "unchecked")
# Between which bounds a score can lie; the metrics that are not here have no bounds.
BOUNDS = {
    "pixcorr": (-1.0, 1.0), "ssim": (-1.0, 1.0), "clip_cosine": (-1.0, 1.0), "effnet_b": (0.0, 2.0), "swav": (0.0, 2.0),
    **dict.fromkeys(("alexnet2", "alexnet5", "inception", "clip"), (0.0, 1.0)),
    **dict.fromkeys(("retrieval_image", "retrieval_brain"), (0.0, 1.0)),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Published:
    """Printed scores, with the protocol and the place they come from."""

    label: str
    protocol: str
    source: str
    scores: dict[str, float | None]
    version: int | None = None  # of the protocol; None: of no protocol of this package
    n_images: int | None = None  # None: not known
    subjects: list[str] = field(default_factory=list)  # scores are means over them; empty: not known
    seen: str = "quoted"
    basis: str = "unchecked"
    note: str = ""

    def problems(self) -> list[str]:
        """Return what is wrong with the row."""
        allowed = {"seen": (self.seen, tuple(SEEN)), "basis": (self.basis, BASES)}
        found = [str(unknown(what, value, names)) for what, (value, names) in allowed.items() if value not in names]
        if not any(value is not None for value in self.scores.values()):
            return [*found, "has no score"]
        for metric, value in self.scores.items():
            lowest, highest = BOUNDS.get(metric, (-math.inf, math.inf))
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                found.append(f"{metric} is {value!r}, wanted a number or null")
            elif not lowest <= value <= highest:
                found.append(f"{metric} is {value}, wanted {lowest:g} to {highest:g} (shares, not per cent)")
        whole = {"n_images": self.n_images, "version": self.version}
        found += [f"{n} is {v!r}, wanted a whole number or null" for n, v in whole.items() if not _whole_or_none(v)]
        return found


@dataclass(frozen=True, kw_only=True)
class SetRow:
    """One row of a set as its file holds it; ``values`` in the order of the set's metrics."""

    id: str
    method: str
    seen: str
    source: list[str]
    basis: str
    values: list[float | None]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """One file: what its rows have in common."""

    title: str
    protocol: str
    version: int | None
    n_images: int | None
    subjects: list[str]
    metrics: list[str]
    sources: dict[str, str]
    rows: list[SetRow]


def _whole_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def sets() -> list[str]:
    """Return the names of the shipped sets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_published(name: str) -> list[Published]:
    """Return the rows of a set, or the one row ``<set>/<id>``. UserError for names that are not there."""
    which, _, row = str(name).partition("/")
    if which not in sets():
        raise unknown("set of published scores", which, sets())
    rows = load_set(FOLDER / f"{which}.yaml")
    if row and row not in rows:
        raise unknown(f"row of published scores {which}:", row, rows)
    return [rows[row]] if row else list(rows.values())


@cache
def load_set(path: Path) -> dict[str, Published]:
    """Read a file of published scores; its rows by id. All problems are told in one ``UserError``."""
    given, problems = read_yaml(path, "published scores", PublishedSet), list[str]()
    if isinstance(given, dict):
        given |= {"rows": build_all(SetRow, given, "rows", problems)}
    whole = build(PublishedSet, given, path.name, problems)
    rows = _rows(whole, problems) if whole is not None and not problems else {}
    refuse(path, problems)
    return rows


def _rows(whole: PublishedSet, problems: list[str]) -> dict[str, Published]:
    rows: dict[str, Published] = {}
    for item in whole.rows:
        wrong = _row_problems(item, whole, rows)
        if not wrong:
            rows[item.id] = _published(item, whole)
            wrong = rows[item.id].problems()
        problems += [f"row {item.id!r} {problem}" for problem in wrong]
    return rows


def _row_problems(item: SetRow, whole: PublishedSet, earlier: dict[str, Published]) -> list[str]:
    found = ["is there twice"] if item.id in earlier else []
    found += [f"names no source: {unknown('source', x, whole.sources)}" for x in item.source if x not in whole.sources]
    if not item.source:
        found.append("names no source")
    if len(item.values) != len(whole.metrics):
        found.append(f"has {len(item.values)} values for {len(whole.metrics)} metrics; a score not seen is null")
    return found


def _published(item: SetRow, whole: PublishedSet) -> Published:
    return Published(
        label=item.method,
        protocol=whole.protocol,
        source="; ".join(whole.sources[name] for name in item.source),
        scores=dict(zip(whole.metrics, item.values, strict=True)),
        version=whole.version,
        n_images=whole.n_images,
        subjects=whole.subjects,
        seen=item.seen,
        basis=item.basis,
        note=item.note,
    )
