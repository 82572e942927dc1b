"""What nothing needs any more: runs of earlier versions that no run reads, and what killed processes have left behind.

A run of an earlier schema version is found by no command any more. It stays where a run of this version was made from
it, directly or through others, or names its folder. Everything that a live process holds stays, and so does everything
that a command would go on with: interrupted runs of this version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nd.config.groups import PathsConfig
from nd.config.schema import SCHEMA_VERSION
from nd.config.sweeps import is_empty_sweep
from nd.errors import UserError
from nd.files import PARTIAL, system_errors
from nd.locks import is_locked, locked
from nd.runs.catalogue import KnownRun, known_runs

TEMPORARY = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)  # as nd.files.atomic_path names files that others may write too
QUIET_S = 86400.0  # a file without a lock that has not changed for a day is written by nobody


@dataclass(frozen=True)
class Unneeded:
    """A file or folder that can go, why, and the lock that its writers hold, where they hold one."""

    path: Path
    why: str
    lock: Path | None = None

    @property
    def n_bytes(self) -> int:
        """Its size, of a folder that of all its files."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.lstat().st_size for file in files if not file.is_dir())


def unneeded(paths: PathsConfig) -> list[Unneeded]:
    """Return what can be removed below ``paths.runs``, ``paths.cache`` and ``paths.results``; nothing is touched."""
    runs = Path(paths.runs)
    found = [*_other_versions(runs), *_without_record(runs), *_empty(runs / "multirun")]
    found += _partial_stores(Path(paths.cache))
    gone = {one.path for one in found}
    left = [one for root in (runs, Path(paths.cache), Path(paths.results)) for one in _temporary(root)]
    return [*found, *(one for one in left if not gone & {one.path, *one.path.parents})]


def needed(known: Sequence[KnownRun]) -> set[Path]:
    """Return the folders of the runs that are of no earlier version, finished or not, and of all that they read."""
    by_fingerprint = {found: run for run in known if (found := _fingerprint(run))}
    stack = [run for run in known if not _is_earlier(run)]
    kept: set[Path] = set()
    while stack:
        run = stack.pop()
        if run.path not in kept:
            kept.add(run.path)
            read = [str(value) for value in run.manifest.get("inputs", {}).values()]
            stack += [by_fingerprint[one] for one in read if one in by_fingerprint]
            record = json.dumps(run.manifest, default=str)  # pretrained weights, say, are given by their path
            stack += [other for other in known if other.path.name in record]
    return kept


def _is_earlier(run: KnownRun) -> bool:
    """Whether a run says that it is of an earlier schema version; one of a later version is none of our business."""
    schema = run.manifest.get("identity", {}).get("schema")
    return isinstance(schema, int) and schema < SCHEMA_VERSION


def _fingerprint(run: KnownRun) -> str:
    """Return what later runs record of a run; empty where its record is damaged."""
    try:
        return run.folder.fingerprint if run.manifest else ""
    except (UserError, KeyError, TypeError, AttributeError):
        return ""


def _other_versions(runs: Path) -> Iterator[Unneeded]:
    known = known_runs(runs)
    kept = needed(known)
    for run in known:
        if run.path not in kept and not run.folder.busy:
            why = f"run of schema version {run.manifest['identity']['schema']}, read by none"
            yield Unneeded(run.path, why, run.path / ".lock")


def _without_record(runs: Path) -> Iterator[Unneeded]:
    """Yield folders of runs that hold neither status nor manifest: their removal was interrupted."""
    for run in known_runs(runs):
        bare = not any((run.path / name).exists() for name in ("status", "manifest.json"))
        if bare and not run.folder.busy and _quiet(run.path):
            yield Unneeded(run.path, "left of a removed run", run.path / ".lock")


def _empty(folder: Path) -> Iterator[Unneeded]:
    """Yield the folders of sweeps in which no job has written anything."""
    for sweep in sorted(folder.iterdir()) if folder.is_dir() else ():
        if sweep.is_dir() and _quiet(sweep) and is_empty_sweep(sweep):
            yield Unneeded(sweep, "empty folder of a sweep")


def _partial_stores(cache: Path) -> Iterator[Unneeded]:
    for path in sorted(cache.rglob("*")):
        if path.is_file() and PARTIAL.fullmatch(path.name):
            lock = path.with_name(f"{path.name.removesuffix('.partial')}.lock")
            if not is_locked(lock):
                yield Unneeded(path, "unfinished cache file of an interrupted command", lock)


def _temporary(folder: Path) -> Iterator[Unneeded]:
    for path in sorted(folder.rglob("*.tmp")):
        if TEMPORARY.fullmatch(path.name) and (path.is_dir() or _quiet(path)):
            yield Unneeded(path, "left of a removal" if path.is_dir() else "temporary file of a killed process")


def _quiet(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > QUIET_S


def remove(one: Unneeded) -> None:
    """Remove a file or folder, unless a process has begun to write it.

    A folder is renamed first: what is left when the removal is interrupted is taken for no run, and found again.

    Raises:
        UserError: it is being written, or the system refuses.
    """
    if one.lock is None:
        _delete(one.path)
        return
    with locked(one.lock, str(one.path)):
        _delete(one.path)


def _delete(path: Path) -> None:
    with system_errors(path, "Check the owner and mode of its folder."):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        if not TEMPORARY.fullmatch(path.name):
            path = path.rename(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
        shutil.rmtree(path)
