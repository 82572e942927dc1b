"""What a table cost: seconds and peak memory of every step behind its rows, as their manifests recorded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nd.hdf5 import open_h5
from nd.runs.chain import steps_of
from nd.runs.folder import RunFolder
from nd.runs.groups import stages_of
from nd.runs.identity import VERBS
from nd.tables.rows import TableRow
from nd.tables.table import Table

HOW = (
    "times are those of all attempts, and training includes pretraining; a step that several rows share was done once "
    "and stands in each of them; points of guidance that were sampled together each say the time of all; memory is the "
    "largest resident set of the process that did a step, which may have done others before"
)
PER_IMAGE, RESIDENT, CUDA = "s per image made", "peak memory", "peak GPU memory"
AT_ONCE = "samples at once: guided, plain, decoded"
ORDER = [*VERBS, PER_IMAGE, AT_ONCE, RESIDENT, CUDA]
Manifests = dict[str, dict[str, Any]]  # by run id


@dataclass(frozen=True)
class Amount:
    """A number and how it is shown; None where it was not recorded."""

    value: float | None
    text: str


@dataclass(frozen=True)
class CostRow:
    """Costs of one row, in the order of ``CostTable.columns``."""

    label: str
    subject: str
    amounts: list[Amount]


@dataclass(frozen=True)
class CostTable:
    """The costs of all rows; columns that no row has anything in are left out."""

    columns: list[str]
    rows: list[CostRow]
    total_s: float
    n_runs: int

    @property
    def note(self) -> str:
        """What the numbers are, and their sum."""
        return f"All {self.n_runs} runs together took {duration(self.total_s)}; {HOW}."


def costs_of(table: Table) -> CostTable:
    """Return what each row of a table cost."""
    manifests: Manifests = {}
    gathered = [(row, dict(_amounts(folders_of(row), manifests))) for row in table.rows]
    names = dict.fromkeys(name for _, amounts in gathered for name in amounts)
    columns = sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    missing = Amount(None, "-")
    rows = [CostRow(row.row.label, row.subject, [own.get(name, missing) for name in columns]) for row, own in gathered]
    return CostTable(columns, rows, sum(float(one["seconds"]) for one in manifests.values()), len(manifests))


def _amounts(folders: Sequence[RunFolder], manifests: Manifests) -> Iterator[tuple[str, Amount]]:
    """Name and amount of each cost of one row; adds the manifests of its runs to those that are known."""
    own = []
    for folder in folders:
        manifest = manifests.get(folder.run_id) or folder.manifest
        if "seconds" in manifest:
            manifests[folder.run_id] = manifest
            own.append((folder, manifest))
    for verb in VERBS:
        seconds = [float(manifest["seconds"]) for folder, manifest in own if folder.verb == verb]
        if seconds:
            yield verb, Amount(sum(seconds), duration(sum(seconds)))
    for name, kind in ((RESIDENT, "resident"), (CUDA, "cuda")):
        peaks = [float(m["peak_memory_mb"][kind]) for _, m in own if kind in m.get("peak_memory_mb", {})]
        if peaks:
            yield name, Amount(max(peaks), f"{max(peaks) / 1000:.1f} GB")
    for folder, manifest in own:
        if folder.verb == "reconstruct":
            yield from _sampling(folder, manifest)


def _sampling(folder: RunFolder, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Amount]]:
    """What is known of how images were made: time for each, and numbers that the run recorded of its execution."""
    if n := n_made(folder):
        each = float(manifest["seconds"]) / n
        yield PER_IMAGE, Amount(each, f"{each:.3g}")
    execution = dict(manifest.get("execution", {}))
    if plan := execution.pop("plan", {}):
        at_once = [int(plan[kind]) for kind in ("guided", "plain", "decode")]
        yield AT_ONCE, Amount(at_once[0], ", ".join(map(str, at_once)))
    for name, value in execution.items():
        if isinstance(value, int | float):
            yield name.replace("_", " "), Amount(float(value), f"{value:.4g}")


def folders_of(row: TableRow) -> list[RunFolder]:
    """Return the run folders behind a row, that of pretraining too; the same training for several targets is one."""
    steps = [step for step in steps_of(row.entry.cfg) if step.folder is not None]
    folders = (RunFolder.open(cfg, verb) for step in steps for verb, cfg in stages_of(step.verb, step.cfg))
    return list({folder.run_id: folder for folder in folders}.values())


def n_made(folder: RunFolder) -> int:
    """Return how many images, repeats counted, a reconstruct run holds; 0 where its file is gone."""
    path = folder.path / "images.h5"
    if not path.is_file():
        return 0
    with open_h5(path) as handle:
        n_images, n_repeats, *_ = handle["images"].shape
    return int(n_images * n_repeats)


def duration(seconds: float) -> str:
    """Return a time as it is said.

    >>> [duration(s) for s in (0.234, 59.0, 61.0, 7320.0)]
    ['0.2 s', '59.0 s', '1 min 1 s', '2 h 2 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
