"""What was given on the command line, read with Hydra's own parser and held against the schema and conf/.

``read`` never stops at the first mistake: it returns every problem beside the overrides that are sound. A field
declared as text keeps the text that was typed, spaces around it too, whatever number, date, function or sign it looks
like; quotes around the whole of it are syntax, and so is ``${...}``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse

from nd.config.grammar import parsed
from nd.config.known import PARTS_OF_DECODING, Known, known_field, known_fields, per_target
from nd.errors import did_you_mean

MAX_COMBINATIONS = 64  # of a sweep checked as combinations; beyond it every value is checked once
PLAIN = re.compile(r"[A-Za-z_./-][\w./-]*", re.ASCII)  # text that the parser reads, and Hydra hands to jobs, as itself
SPECIAL = {"true", "false", "null", "nan", "inf", "-inf", "-nan"}
NO_EXPERIMENT = "[]"  # Hydra's word for a group without a choice


@dataclass(frozen=True)
class Given:
    """One override: its key, the texts of its values (several in a sweep), and what Hydra is told."""

    key: str
    values: tuple[str, ...]
    text: str


@dataclass
class Reading:
    """The sound overrides (of a repeated key the last), those for Hydra itself as they came, and all problems."""

    given: list[Given] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)  # groups whose choice was no option, so that their default stands in

    @property
    def sweeps(self) -> bool:
        """Whether any override has several values."""
        return any(len(g.values) > 1 for g in self.given)

    def single(self) -> list[str]:
        """Return ``key=value`` for every override; of a sweep its first value."""
        return [f"{g.key}={g.values[0]}" for g in self.given]

    def combinations(self, limit: float = MAX_COMBINATIONS) -> list[list[str]]:
        """Return the override lists a sweep stands for: all combinations, or each value once beyond ``limit``."""
        if math.prod(len(one.values) for one in self.given) <= limit:
            rows = list(product(*(one.values for one in self.given)))
        else:
            longest = max(len(one.values) for one in self.given)
            rows = [tuple(one.values[min(i, len(one.values) - 1)] for one in self.given) for i in range(longest)]
        return [[f"{one.key}={value}" for one, value in zip(self.given, row, strict=True)] for row in rows]


def group_names(folders: Sequence[Path]) -> list[str]:
    """Return the groups of conf/: its sub-folders, Hydra's own left out."""
    found = {child.name for folder in folders if folder.is_dir() for child in folder.iterdir() if child.is_dir()}
    return sorted(name for name in found if name != "hydra" and not name.startswith((".", "_")))


def group_options(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a group: the names of its YAML files."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def unknown_key(key: str, where: str = "", groups: Iterable[str] = ()) -> str:
    """Say that a key is unknown, with the nearest known one and the fields of its group."""
    names = [*known_fields(), *groups]
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


def foreign_key(key: str, values: dict[str, Any]) -> str:
    """Say that a field belongs to another choice than the one made (``values``: the choosing field by group)."""
    group, owners = key.partition(".")[0], known_fields()[key].owners
    choice = {"data": "data.source", "method": "method.generator"}.get(group, group)
    own = [name.partition(".")[2] for name, one in known_fields().items() if _belongs(name, one, group, values[group])]
    listed = " or ".join(f"{choice}={owner}" for owner in owners)
    return (
        f"{key}: unknown key here: it belongs to {listed}, and {choice} is {values[group]}. "
        f"Fields of {choice}={values[group]}: {', '.join(own)}."
    )


def _belongs(name: str, one: Known, group: str, choice: str) -> bool:
    return name.startswith(f"{group}.") and (not one.owners or choice in one.owners)


def read(overrides: Sequence[str], folders: Sequence[Path], multirun: bool = False) -> Reading:
    """Parse overrides and hold their keys, group options and form against the schema and ``folders`` of conf files.

    Args:
        overrides: as given, e.g. ``["data=digits69", "+guidance.kappa=3"]``; a leading ``+`` is accepted on known keys.
        folders: conf/ first, then any further search path.
        multirun: whether several values (``a=1,2``) are allowed.
    """
    reading, groups = Reading(), group_names(folders)
    for text in overrides:
        key, equals, raw = text.partition("=")
        people = re.fullmatch(r"[\w.,-]+", raw) and not set(raw.split(",")) <= set(group_options("subject", folders))
        if key.lstrip("+") == "subject" and people:
            key, text = "subject.name", f"subject.name={raw}"  # people of own data have no file in conf/subject
        known = known_field(key.lstrip("+")) if key.lstrip("+") not in groups else None
        try:
            override = parsed(text)
        except HydraException as error:
            if known is not None and known.text and equals:  # any text is a text: paths with brackets, accents, quotes
                key = key.lstrip("+")
                reading.given.append(Given(key, (quoted(raw),), f"++{key}={quoted(raw)}"))
            else:
                help_ = f" Values with special characters are quoted twice: {key}=\"'...'\"." if equals else ""
                said = str(error).splitlines()[0]
                reading.problems.append(f"{text}: cannot be read as key=value ({said}).{help_}")
            continue
        if override.is_hydra_override():
            reading.hydra.append(text)
        else:
            _read_one(override, text, known, folders, groups, multirun, reading)
    _drop_broken_references(reading)
    latest = {one.key: one for one in reading.given}
    reading.given = [one for one in reading.given if latest[one.key] is one]
    return reading


def _drop_broken_references(reading: Reading) -> None:
    """Make problems of values in which ``${`` begins no reference to another field."""
    for one in list(reading.given):
        try:
            for value in one.values:
                parse(value.strip("'\"")) if "${" in value else None
        except OmegaConfBaseException:
            reading.problems.append(f"{one.key}: {value} holds no whole ${{...}}; where ${{ is meant as text: \\${{.")
            reading.given.remove(one)


def _read_one(
    override: Override,
    text: str,
    known: Known | None,
    folders: Sequence[Path],
    groups: Sequence[str],
    multirun: bool,
    reading: Reading,
) -> None:
    key = override.key_or_group
    if override.is_delete():
        reading.problems.append(f"{text}: nothing can be removed; set a value instead (key=value).")
        return
    if override.package is not None or (key not in groups and known is None):
        wrong = override.get_key_element().lstrip("+")
        reading.problems.append(_bad_target(key) or unknown_key(wrong, groups=groups))
        return
    values = _values(override, text, known, group_options(key, folders) if key in groups else [])
    if key == "experiment" and "null" in values:  # which Hydra takes in a file but not on the command line
        values = [NO_EXPERIMENT if value == "null" else value for value in values]
        text = f"experiment={','.join(values)}"
    if not values:  # left out, it would leave the default in its place
        reading.problems.append(f"{text}: it stands for no value.{_options(key, folders) if key in groups else ''}")
        return
    if len(values) > 1 and not multirun:
        hint = f" (a list is written {key}=[{','.join(values)}])" if key not in groups else ""
        needs = f"several values need -m, which runs one job for each{hint}"
        searched = "an interval is searched by nd tune" if isinstance(override.value(), IntervalSweep) else needs
        reading.problems.append(f"{text}: {searched}.")
        return
    problems = [bad_option(key, value, folders) for value in values] if key in groups else []
    found = [problem for problem in problems if problem]
    reading.problems += found
    reading.lost |= {key} if found else set()
    if not found:
        sign = "" if key in groups else "++"
        sweep = override.is_sweep_override() and not _is_list(override, known)
        told = text.lstrip("+") if sweep or key in groups else f"{key}={','.join(values)}"
        reading.given.append(Given(key, tuple(values), sign + told))


def _is_list(override: Override, known: Known | None) -> bool:
    """Whether Hydra is told the values of a sweep: those of a list as they were, those of texts quoted."""
    value = override.value()
    return (isinstance(value, ChoiceSweep) and value.simple_form) or (known is not None and known.text)


def _bad_target(key: str) -> str:
    """Say what is wrong with a key below ``method.targets``; empty for other keys."""
    if (inside := per_target(key)) is None:
        return ""
    if inside[1] == "mapper":
        return f"{key}: a target's mapper is chosen by its name: {key}.name=<name>."
    own = [name for name in known_fields() if name.partition(".")[0] in PARTS_OF_DECODING]
    return (
        f"{key}: unknown key: a target of a method holds roi and fields of {', '.join(PARTS_OF_DECODING)}."
        f"{did_you_mean(inside[1], ['roi', *own])}"
    )


def _values(override: Override, text: str, known: Known | None, options: list[str]) -> list[str]:
    """Return the texts of an override's values, to be parsed again: one, those of a sweep, or an interval's ends."""
    raw = text.partition("=")[2]
    if not override.is_sweep_override():
        return [_typed(override.value(), raw, known)]
    value = override.value()
    if known is not None and known.text and not isinstance(value, ChoiceSweep | RangeSweep):
        return [quoted(raw)]  # glob(*) and interval(0,1) stand for nothing here
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if isinstance(value, Glob):
        return value.filter(options)
    if known is not None and known.text and isinstance(value, ChoiceSweep):
        if value.simple_form:
            return [_typed(_parsed(one), one, known) for one in split(raw)]
        return [quoted(one) if isinstance(one, str) else Transformer.str(one) for one in override.sweep_iterator()]
    return list(override.sweep_string_iterator())


def _parsed(raw: str) -> Any:
    return parsed(f"x={raw}").value()


def _typed(value: Any, raw: str, known: Known | None) -> str:
    """Return a value as text that the parser reads back as what the field is to hold."""
    if known is None or not known.text:
        return raw
    if isinstance(value, list) and known.many:
        return "[" + ",".join(_typed(_parsed(one), one, known) for one in split(raw.strip()[1:-1])) + "]"
    if isinstance(value, str) and raw.lstrip()[:1] in ("'", '"'):
        return raw.strip()
    return raw if isinstance(value, (list, dict)) else quoted(raw)


def quoted(text: str) -> str:
    """Return text as the override parser reads it back unchanged."""
    if PLAIN.fullmatch(text) and text.lower() not in SPECIAL:
        return text
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def split(raw: str) -> Iterator[str]:
    """Yield the parts of a list's text between commas, not those inside quotes, brackets or braces."""
    depth, quote, start = 0, "", 0
    for i, sign in enumerate(raw):
        if quote:
            quote = "" if sign == quote and raw[i - 1] != "\\" else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in "]})":
            depth -= 1
        elif sign == "," and not depth:
            yield raw[start:i].strip()
            start = i + 1
    if raw[start:].strip():
        yield raw[start:].strip()


def bad_option(group: str, value: str, folders: Sequence[Path]) -> str:
    """Return a problem when ``value`` is not an option of ``group``, else an empty string."""
    options, name = group_options(group, folders), value.strip("'\"")
    if name in options or (group == "experiment" and name == NO_EXPERIMENT):
        return ""
    return f"{group}={value}: unknown option.{did_you_mean(name, options)}{_options(group, folders)}"


def _options(group: str, folders: Sequence[Path]) -> str:
    return f" Options of {group}: {', '.join(group_options(group, folders))}."
