"""What was given on the command line, read with Hydra's own parser and held against the schema and conf/.

``read`` never stops at the first mistake: it returns every problem beside the overrides that are sound.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from nd.config import Config
from nd.errors import did_you_mean

MAX_COMBINATIONS = 64  # of a sweep checked as combinations; beyond it every value is checked once


@dataclass(frozen=True)
class Given:
    """One override: its key, the texts of its values (several in a sweep), and what Hydra is told (no ``+``)."""

    key: str
    values: tuple[str, ...]
    text: str


@dataclass
class Reading:
    """The sound overrides, those for Hydra itself as they came, and all problems."""

    given: list[Given] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)  # groups whose choice was no option, so that their default stands in

    @property
    def sweeps(self) -> bool:
        """Whether any override has several values."""
        return any(len(g.values) > 1 for g in self.given)

    def single(self) -> list[str]:
        """Return ``key=value`` for every override; of a sweep its first value, of a repeated key its last."""
        return [f"{g.key}={g.values[0]}" for g in _last_wins(self.given)]

    def combinations(self) -> list[list[str]]:
        """Return the override lists a sweep stands for: all combinations, or each value once where they are many."""
        given = _last_wins(self.given)
        if math.prod(len(one.values) for one in given) <= MAX_COMBINATIONS:
            rows = list(product(*(one.values for one in given)))
        else:
            longest = max(len(one.values) for one in given)
            rows = [tuple(one.values[min(i, len(one.values) - 1)] for one in given) for i in range(longest)]
        return [[f"{one.key}={value}" for one, value in zip(given, row, strict=True)] for row in rows]


def field_names(node: Any = Config, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields that can be set."""
    names: list[str] = []
    for one in fields(node):
        if one.name == "overrides":
            continue
        nested = one.default_factory
        if is_dataclass(nested):
            names += field_names(nested, f"{prefix}{one.name}.")
        else:
            names.append(prefix + one.name)
    return names


def group_names(folders: Sequence[Path]) -> list[str]:
    """Return the groups of conf/: its sub-folders, Hydra's own left out."""
    found = {child.name for folder in folders for child in folder.iterdir() if child.is_dir()}
    return sorted(name for name in found if name != "hydra" and not name.startswith((".", "_")))


def group_options(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a group: the names of its YAML files."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def unknown_key(key: str, names: Iterable[str], where: str = "") -> str:
    """Say that a key is unknown, with the nearest known one and the fields of its group."""
    names = list(names)
    group, _, leaf = key.rpartition(".")
    siblings = [name for name in names if group and name.rpartition(".")[0] == group]
    hint = did_you_mean(key, siblings) or _same_leaf(leaf, names) or did_you_mean(key, names)
    held = f" Fields of {group}: {', '.join(name.rpartition('.')[2] for name in siblings)}." if siblings else ""
    return f"{key}: unknown key{where}.{hint}{held}"


def _same_leaf(leaf: str, names: list[str]) -> str:
    """Offer the field whose own name, whatever its group, is nearest: ``kapa`` means ``guidance.kappa``."""
    leaves = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    return f" Did you mean {leaves[near[0]]!r}?" if near else ""


def read(overrides: Sequence[str], folders: Sequence[Path], multirun: bool = False) -> Reading:
    """Parse overrides and hold their keys, group options and form against the schema and ``folders`` of conf files.

    Args:
        overrides: as given, e.g. ``["data=digits69", "+guidance.kappa=3"]``; a leading ``+`` is accepted on known keys.
        folders: conf/ first, then any further search path.
        multirun: whether several values (``a=1,2``) are allowed.
    """
    reading = Reading()
    for given in overrides:
        text = given.replace("=~/", f"={Path.home()}/", 1)  # left alone by shells, refused by the parser
        key, _, name = text.lstrip("+").partition("=")
        if key == "subject" and not set(name.split(",")) <= set(group_options("subject", folders)):
            text = f"subject.name={name}"  # people of own data have no file in conf/subject
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reading.problems.append(f"{text}: cannot be read as key=value ({str(error).splitlines()[0]}).")
            continue
        if override.is_hydra_override():
            reading.hydra.append(text)
        else:
            _read_one(override, text, folders, multirun, reading)
    return reading


def _read_one(override: Override, text: str, folders: Sequence[Path], multirun: bool, reading: Reading) -> None:
    groups, names = group_names(folders), field_names()
    key = override.key_or_group
    if override.is_delete():
        reading.problems.append(f"{text}: nothing can be removed; set a value instead (key=value).")
        return
    if override.package is not None or (key not in groups and key not in names):
        reading.problems.append(unknown_key(override.get_key_element().lstrip("+"), [*names, *groups]))
        return
    values = _values(override, group_options(key, folders) if key in groups else [])
    if len(values) > 1 and not multirun:
        hint = f" (a list is written {key}=[{','.join(values)}])" if key not in groups else ""
        reading.problems.append(f"{text}: several values need -m, which runs one job for each{hint}.")
        return
    problems = [_bad_option(key, value, folders) for value in values] if key in groups else []
    found = [problem for problem in problems if problem]
    reading.problems += found
    reading.lost |= {key} if found else set()
    if not found and values:
        reading.given.append(Given(key, tuple(values), text.lstrip("+")))


def _values(override: Override, options: list[str]) -> list[str]:
    """Return the texts of an override's values: one, those of a sweep, or the ends of an interval."""
    if not override.is_sweep_override():
        return [override.get_value_string()]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if isinstance(value, Glob):
        return value.filter(options)
    return list(override.sweep_string_iterator())


def _bad_option(group: str, value: str, folders: Sequence[Path]) -> str:
    """Return a problem when ``value`` is not an option of ``group``, else an empty string."""
    options, name = group_options(group, folders), value.strip("'\"")
    if name in options or (group == "experiment" and name == "null"):
        return ""
    return f"{group}={value}: unknown option.{did_you_mean(name, options)} Options of {group}: {', '.join(options)}."


def _last_wins(given: Sequence[Given]) -> list[Given]:
    """Drop overrides that a later one of the same key replaces, keeping the order."""
    latest = {one.key: index for index, one in enumerate(given)}
    return [one for index, one in enumerate(given) if latest[one.key] == index]
