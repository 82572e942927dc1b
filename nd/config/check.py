"""The composed configuration held against the schema: unknown keys, types, allowed values, missing paths.

Composition is permissive, so that a wrong value reaches this check; every problem is collected, none is raised here.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from nd.config.components import CHOSEN_BY, KINDS, found, not_a_component
from nd.config.fields import declared
from nd.config.known import BASES, FILLED_IN, PARTS_OF_DECODING, group_type, known_fields
from nd.config.overrides import unknown_key
from nd.config.schema import ALL, Config, Decoding
from nd.errors import did_you_mean
from nd.files import located
from nd.terminal import unstorable

WANTED = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list, e.g. [1,2]",
    dict: "a mapping, e.g. {z: {roi: V1}}, or a list of names",
}  # fmt: skip
KINDS_OF_VALUE = {
    bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a dictionary",
}  # fmt: skip

Origin = Callable[[str], str]


@dataclass
class Checked:
    """What the check found.

    Attributes:
        problems: what is wrong, in the order of the schema.
        foreign: keys that hold fields of another choice than the one made.
    """

    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Everything wrong, fields of another choice included."""
        return [*self.problems, *(f"{key}: it is no field of the choice made." for key in self.foreign)]


def build(values: dict[str, Any], origin: Origin = lambda key: "") -> tuple[Config, Checked]:
    """Turn composed values into a typed ``Config``; fields with a problem keep their default.

    Args:
        values: nested plain dictionary, interpolations resolved.
        origin: says where an unknown key comes from, e.g. " in conf/guidance/scenes.yaml".
    """
    checked, typed = Checked(), dict[str, Any]()
    known = {one.name: one for one in fields(Config)}
    checked.problems += [unknown_key(key, origin(key)) for key in values if key not in known or key in FILLED_IN]
    hints = _hints(Config)
    for name, one in known.items():
        if name not in values or name in FILLED_IN:
            continue
        if group_type(one) is not None:
            built = build_group(name, values[name], checked, origin)
            typed |= {} if built is None else {name: built}
        else:
            _take(name, values[name], hints[name], one, typed, checked.problems)
    return Config(**typed), checked


def restored(values: dict[str, Any]) -> tuple[Config, Checked]:
    """Return the configuration that a run folder recorded, with how each target was decoded, and what is wrong."""
    config, checked = build({name: value for name, value in values.items() if name not in FILLED_IN})
    for name, one in (values.get("decodings") or {}).items():
        parts = {part: build_group(part, one.get(part, {}), checked) for part in PARTS_OF_DECODING}
        config.decodings[name] = Decoding(**parts, roi=str(one.get("roi", config.subject.roi)))
    config.overrides = list(values.get("overrides") or [])
    return config, checked


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """Types of the fields of a dataclass, whose texts are compiled anew each time Python is asked."""
    return typing.get_type_hints(kind)


def build_group(group: str, values: Any, checked: Checked, origin: Origin = lambda key: "") -> Any:
    """Return the dataclass of one group, of the type that the choice in it asks for; None where it is no mapping."""
    if not isinstance(values, dict):
        checked.problems.append(f"{group}: {values!r} was given, wanted a group of fields ({group}.<field>=value).")
        return None
    kind = settings_type(group, values, checked.problems)
    hints, own = _hints(kind), {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    typed: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{group}.{key}"
        if key in own:
            _take(dotted, value, hints[key], own[key], typed, checked.problems)
        elif dotted in known_fields():
            checked.foreign.append(dotted)
        else:
            checked.problems += [
                unknown_key(inner, origin(inner))
                for inner in ([f"{dotted}.{k}" for k in value] if isinstance(value, dict) and value else [dotted])
            ]
    return kind(**typed)


def settings_type(group: str, values: dict[str, Any], problems: list[str]) -> type[Any]:
    """Return the settings of the component that a group's values choose; the default's where there is none."""
    static = {one.name: group_type(one) for one in fields(Config)}[group]
    if group not in CHOSEN_BY:
        assert static is not None
        return static
    kind = CHOSEN_BY[group]
    default = {one.name: one.default for one in fields(BASES[group])}[KINDS[kind].choice]
    name = str(values.get(KINDS[kind].choice, default))
    if group == "target" and name == ALL:
        return BASES[group]
    components = found(kind).components
    if name not in components:
        problems.append(not_a_component(kind, name))
        values[KINDS[kind].choice] = name = str(default)
    return components[name].settings


def _take(name: str, value: Any, hint: Any, one: Field[Any], typed: dict[str, Any], problems: list[str]) -> None:
    """Check one value and, if it is sound, put it among the typed ones."""
    if typing.get_origin(hint) is dict and isinstance(value, list):
        value = _by_name(name, value, problems)
    problem = check_field(name, value, hint, one)
    problems += [problem] if problem else []
    if not problem or (declared(one).path and isinstance(value, str)):  # a given path stays given, if absent
        typed[one.name] = convert(value, hint)


def _by_name(name: str, listed: list[Any], problems: list[str]) -> dict[str, Any]:
    """Return a list of names as a mapping in which each has nothing of its own."""
    if len({str(one) for one in listed}) < len(listed):
        problems.append(f"{name}: {listed} names a target twice.")
    return {str(one): {} for one in listed}


def check_field(name: str, value: Any, hint: Any, one: Field[Any]) -> str | None:
    """Return what is wrong with one value (type, finiteness, allowed values, missing path), or None."""
    if value == "???":
        return f"{name}: must be given ({declared(one).help})."
    if typing.get_origin(hint) is dict:
        return None if isinstance(value, dict) else f"{name}: {value!r} is {_kind(value)}, wanted {WANTED[dict]}."
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            return f"{name}: {value!r} is {_kind(value)}, wanted {WANTED[list]}."
        (item,) = typing.get_args(hint)
        found = [_check_scalar(f"{name}[{i}]", v, item, one) for i, v in enumerate(value)]
        return next((problem for problem in found if problem), None)
    return _check_scalar(name, value, hint, one)


def convert(value: Any, hint: Any) -> Any:
    """Return a checked value with exactly the declared type (whole numbers become floats where floats are declared)."""
    if typing.get_origin(hint) is list:
        return [convert(item, typing.get_args(hint)[0]) for item in value]
    if typing.get_origin(hint) is dict:
        return {str(key): item or {} for key, item in value.items()}
    if hint is str and str(value).startswith("~/"):
        return str(located(value))
    return hint(value)


def _check_scalar(name: str, value: Any, kind: type, one: Field[Any]) -> str | None:
    facts = declared(one)
    if not _fits(value, kind):
        more = " (for none write '')" if kind is str and value is None else ""
        several = (
            ",".join(map(str, value)) if isinstance(value, list) and all(_fits(item, kind) for item in value) else ""
        )
        more += f". A run for each: {name}={several} with -m" if "," in several else ""
        return f"{name}: {value!r} is {_kind(value)}, wanted {WANTED[kind]}{more}."
    if kind is str and (problem := unstorable(value, f"{name}: the text")):
        return problem
    if kind is float and not math.isfinite(value):
        return f"{name}: {value!r} was given, wanted a finite number."
    if facts.choices and convert(value, kind) not in facts.choices:
        listed = ", ".join("'' (none)" if choice == "" else str(choice) for choice in facts.choices)
        return f"{name}: {value!r} is not allowed.{did_you_mean(str(value), facts.choices)} Allowed: {listed}."
    if facts.path and value and not located(str(value)).exists():
        return f"{name}: {value} does not exist. Wanted: {facts.help}.{_near_path(located(str(value)))}"
    return None


def _fits(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "empty" if value is None else KINDS_OF_VALUE.get(type(value), type(value).__name__)


def _near_path(path: Path) -> str:
    """Offer the nearest name in the same folder, or say which part of the path is missing."""
    folder = path.parent
    if not folder.is_dir():
        return f" Its folder {folder} does not exist either."
    return did_you_mean(path.name, (child.name for child in folder.iterdir()))
