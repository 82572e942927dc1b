"""The runs there are: found below ``paths.runs``, with what they were made with and what sets them apart.

Everything is read from the record beside each run, so runs of other versions are listed too.
"""

from __future__ import annotations

import difflib
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nd.config.help import shown
from nd.config.known import PARTS_OF_DECODING, known_field, known_fields
from nd.config.overrides import split, unknown_key
from nd.config.schema import SCHEMA_VERSION
from nd.errors import UserError, did_you_mean
from nd.files import HASH_CHARS, read_json
from nd.runs.folder import RunFolder, run_path
from nd.runs.identity import VERBS, flat
from nd.runs.manifest import AnyManifest

NAMED = re.compile(rf"(.+)-([0-9a-f]{{{HASH_CHARS}}})")  # <name>-<run_id>
STATES = ("done", "running", "partial", "failed", "other version", "damaged")
IN_THE_NAME = {"data", "method", "subject", "target", "experiment", "debug", "trainer", "logger", "paths"}
MAIN_SCORES = ("pixcorr", "ssim", "two_way_high", "label_two_way", "alexnet5_256", "clip_l14_224")
AGES = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


class Mean(TypedDict):
    """What is listed of one metric."""

    mean: float


class Scored(TypedDict):
    """What is listed of ``scores.json``."""

    metrics: dict[str, Mean]


@dataclass(frozen=True)
class KnownRun:
    """A run folder that is there; its record is read when it is first asked for."""

    folder: RunFolder
    name: str

    @property
    def verb(self) -> str:
        """What made it."""
        return self.folder.verb

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.path

    @property
    def id(self) -> str:
        """Its run id."""
        return self.folder.run_id

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The recorded manifest; empty where there is none that can be read."""
        try:
            found: dict[str, Any] = read_json(self.path / "manifest.json", AnyManifest)
        except UserError:
            return {}
        return found

    @cached_property
    def state(self) -> str:
        """One of ``STATES``; a killed run is partial, and one that a live process writes is running."""
        try:
            status = self.folder.status
        except UserError:
            return "damaged"
        if not self.manifest:
            return {"done": "damaged", "failed": "failed"}.get(status, "partial")
        if self.manifest.get("identity", {}).get("schema") != SCHEMA_VERSION:
            return "other version"
        if status in ("done", "failed"):
            return status
        return "running" if self.folder.busy else "partial"

    @cached_property
    def n_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @cached_property
    def changed(self) -> float:
        """When its state last changed, in seconds since the epoch."""
        file = self.path / "status"
        return (file if file.is_file() else self.path).stat().st_mtime

    @property
    def config(self) -> dict[str, Any]:
        """The configuration it recorded, as plain values."""
        recorded: dict[str, Any] = self.manifest.get("config", {})
        return recorded

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decided its output and differs from the defaults, by dotted key; of a target ``<target>.<key>``."""
        return flat(self.manifest.get("identity", {}))

    def values(self, key: str) -> list[Any]:
        """Return what it has under a key of the configuration: a value for each target where they have their own."""
        group = key.partition(".")[0]
        decodings = self.config.get("decodings", {}) if self.verb != "train" else {}
        if key == "target.name" and decodings:
            return list(decodings)
        own = [_inside(one, key) for one in decodings.values()] if group in PARTS_OF_DECODING else []
        return [value for value in own or [_inside(self.config, key)] if value is not None]

    def text(self, key: str) -> str:
        """Return the value of a key of ``identity`` as it would be typed; one that is not there is the default's."""
        if key in self.identity:
            return shown(self.identity[key])
        target, _, inner = key.partition(".")
        decodings = self.config.get("decodings", {})
        value = _inside(decodings[target], inner) if target in decodings else _inside(self.config, key)
        return "default" if value is None else shown(value)

    @property
    def typed(self) -> list[str]:
        """Keys of what was given on the command line, as far as results depend on it and the name does not say it."""
        keys = dict.fromkeys(text.lstrip("+").partition("=")[0] for text in self.manifest.get("overrides", []))
        return [key for key in keys if (known := known_field(key)) and known.facts.identity and not _in_the_name(key)]


def _in_the_name(key: str) -> bool:
    group, _, inner = key.partition(".")
    return group in IN_THE_NAME and inner in ("", "name")


def _inside(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of nested dictionaries; None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def known_runs(runs: Path, verbs: Iterable[str] = VERBS) -> list[KnownRun]:
    """Return runs below ``paths.runs``, which need not exist, in the order of the chain and the newest first."""
    found = [run for verb in VERBS if verb in verbs for run in _of_verb(runs / verb, verb)]
    return sorted(found, key=lambda run: (VERBS.index(run.verb), -run.changed))


def _of_verb(folder: Path, verb: str) -> Iterator[KnownRun]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and (named := NAMED.fullmatch(path.name)):
            yield KnownRun(RunFolder(verb, path, named[2]), named[1])


def find_run(text: str, runs: Path, verbs: Iterable[str] = VERBS) -> KnownRun:
    """Return the run that a word means.

    Args:
        text: its folder, its id or name, or an unambiguous beginning of either.
        runs: ``paths.runs``.
        verbs: of which the beginning of a name is meant, where runs of them have it.

    Raises:
        UserError: no such run, with the nearest; or several, with all of them.
    """
    path = run_path(text)
    if path.is_dir() and path.parent.name in VERBS and (named := NAMED.fullmatch(path.name)):
        return KnownRun(RunFolder(path.parent.name, path, named[2]), named[1])
    known = known_runs(runs)
    exact = [run for run in known if text in (run.id, run.path.name)]
    begun = [run for run in known if run.id.startswith(text) or run.path.name.startswith(text)]
    found = exact or [run for run in begun if run.verb in verbs] or begun
    if len(found) == 1:
        return found[0]
    if found:
        listed = "".join(f"\n  {run.id}  {run.verb:<12}{run.name}" for run in found)
        raise UserError(f"{len(found)} runs begin with {text!r}; give one of their ids:{listed}")
    if not known:
        raise UserError(f"there is no run in {runs}. Runs are made by `nd run`; paths.root=<folder> looks elsewhere.")
    starts = {name[: len(text)]: name for run in known for name in (run.path.name, run.id)}
    nearest = starts[difflib.get_close_matches(text, starts, n=1, cutoff=0.0)[0]]
    raise UserError(f"no run in {runs} is called {text!r} or begins so. Did you mean {nearest!r}? `nd ls` lists all.")


def filtered(runs: Iterable[KnownRun], wanted: Mapping[str, str]) -> list[KnownRun]:
    """Return the runs that have every wanted value.

    Args:
        runs: any.
        wanted: by key of the configuration, or ``state``, the text of a value: of several (``1,2``) one is enough,
            ``*`` stands for anything, and ``method`` is short for ``method.name``.

    Raises:
        UserError: unknown keys or states.
    """
    keys = {key: f"{key}.name" if f"{key}.name" in known_fields() else key for key in wanted}
    for key, full in keys.items():
        if key != "state" and known_field(full) is None:
            raise UserError(unknown_key(key, groups=["state"]))
    states = list(split(wanted.get("state", "")))
    for one in states:
        if not any(state.startswith(one) for state in STATES):
            raise UserError(f"state={one}: there is no such state.{did_you_mean(one, STATES)} One of: {_listed()}.")
    found = [run for run in runs if not states or any(run.state.startswith(one) for one in states)]
    for key, full in keys.items():
        if key != "state":
            found = [run for run in found if any(_is(value, wanted[key]) for value in run.values(full))]
    return found


def _listed() -> str:
    return ", ".join(repr(state) if " " in state else state for state in STATES)


def _is(value: Any, wanted: str) -> bool:
    """Whether a value is what was typed, or one of several."""
    return any(_equals(value, one) for one in (wanted, *split(wanted)))


def _equals(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return shown(value) == text.lower()
    if isinstance(value, list) and text.startswith("["):
        parts = list(split(text.removeprefix("[").removesuffix("]")))
        return len(parts) == len(value) and all(map(_equals, value, parts))
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return shown(value) == text or fnmatchcase(shown(value), text)


def apart(runs: Sequence[KnownRun]) -> dict[Path, list[str]]:
    """Return what sets each run apart, as ``key=value`` words by folder.

    Those are the keys in which runs of one verb and name differ, and what was typed.
    """
    groups: dict[tuple[str, str], list[KnownRun]] = defaultdict(list)
    for run in runs:
        groups[run.verb, run.name].append(run)
    words: dict[Path, list[str]] = {}
    for group in groups.values():
        every = dict.fromkeys(key for run in group for key in run.identity)
        differing = [key for key in every if len({run.text(key) for run in group}) > 1]
        for run in group:
            words[run.path] = [f"{key}={run.text(key)}" for key in dict.fromkeys([*run.typed, *differing])]
    return words


def age(since: float, now: float | None = None) -> str:
    """Return how long ago something was, in the unit that fits it.

    >>> age(0.0, now=7300.0)
    '2 h'
    """
    seconds = max(0.0, (time.time() if now is None else now) - since)
    return next((f"{seconds / size:.0f} {unit}" for unit, size in AGES if seconds >= size), f"{seconds:.0f} s")


def scores_of(run: KnownRun) -> dict[str, float]:
    """Return the mean scores of an evaluate run by metric; empty for any other, or one without scores."""
    try:
        metrics = read_json(run.path / "scores.json", Scored)["metrics"]
    except UserError:
        return {}
    return {name: score["mean"] for name, score in metrics.items()}
