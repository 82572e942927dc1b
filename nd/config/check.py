"""The composed configuration held against the schema: unknown keys, types, allowed values, missing paths.

Composition is permissive, so that a wrong value reaches this check; every problem is collected, none is raised here.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from nd.config import Config
from nd.config.overrides import field_names, unknown_key
from nd.errors import did_you_mean

WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list, e.g. [1,2]"}

KINDS = {
    bool: "true/false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a dictionary",
}


def build(values: dict[str, Any], origin: Callable[[str], str] = lambda key: "") -> tuple[Config, list[str]]:
    """Turn composed values into a typed ``Config`` and list every problem found on the way.

    Args:
        values: nested plain dictionary, interpolations resolved.
        origin: says where an unknown key comes from, e.g. " in conf/guidance/scenes.yaml".

    Returns:
        The configuration (fields with a problem keep their default) and the problems, in the order of the schema.
    """
    problems = [unknown_key(key, field_names(), origin(key)) for key in _unknown(values, Config)]
    config = _build(values, Config, "", problems)
    return config, problems


def _unknown(values: dict[str, Any], node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of keys that the dataclass ``node`` does not have."""
    known = {one.name: one for one in fields(node)}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known or name == "overrides":
            yield name
        elif is_dataclass(known[key].default_factory) and isinstance(value, dict):
            yield from _unknown(value, known[key].default_factory, f"{name}.")


def _build(values: dict[str, Any], node: Any, prefix: str, problems: list[str]) -> Any:
    hints, typed = typing.get_type_hints(node), {}
    for one in fields(node):
        name = f"{prefix}{one.name}"
        if one.name not in values:
            continue
        value = values[one.name]
        if is_dataclass(one.default_factory):
            if isinstance(value, dict):
                typed[one.name] = _build(value, one.default_factory, f"{name}.", problems)
            else:
                problems.append(f"{name}: {value!r} was given, wanted a group of fields ({name}.<field>=value).")
            continue
        found = check_field(name, value, hints[one.name], one)
        problems += [found] if found else []
        if not found or (one.metadata["path"] and isinstance(value, str)):  # a given path stays given, if absent
            typed[one.name] = convert(value, hints[one.name])
    return node(**typed)


def check_field(name: str, value: Any, hint: Any, declared: Field[Any]) -> str | None:
    """Return what is wrong with one value (type, finiteness, allowed values, missing path), or None."""
    if value == "???":
        return f"{name}: must be given ({declared.metadata['help']})."
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            return f"{name}: {value!r} is {_kind(value)}, wanted {WANTED[list]}."
        (item,) = typing.get_args(hint)
        found = [_check_scalar(f"{name}[{i}]", v, item, declared) for i, v in enumerate(value)]
        return next((problem for problem in found if problem), None)
    return _check_scalar(name, value, hint, declared)


def convert(value: Any, hint: Any) -> Any:
    """Return a checked value with exactly the declared type (whole numbers become floats where floats are declared)."""
    if typing.get_origin(hint) is list:
        return [convert(item, typing.get_args(hint)[0]) for item in value]
    if hint is str and str(value).startswith("~/"):  # in a file of conf/
        return str(Path(value).expanduser())
    return hint(value)


def _check_scalar(name: str, value: Any, kind: type, declared: Field[Any]) -> str | None:
    if not _fits(value, kind):
        empty = " (for none write '')" if kind is str and value is None else ""
        return f"{name}: {value!r} is {_kind(value)}, wanted {WANTED[kind]}{empty}."
    if kind is float and not math.isfinite(value):
        return f"{name}: {value!r} was given, wanted a finite number."
    choices = declared.metadata.get("choices", ())
    if choices and convert(value, kind) not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        return f"{name}: {value!r} is not allowed.{did_you_mean(str(value), choices)} Allowed: {listed}."
    if declared.metadata.get("path") and value and not Path(str(value)).expanduser().exists():
        return f"{name}: {value} does not exist. Wanted: {declared.metadata['help']}.{_near_path(Path(str(value)))}"
    return None


def _fits(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:  # numbers are accepted as text: subject.roi=1 is a name to the user
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "empty" if value is None else KINDS.get(type(value), type(value).__name__)


def _near_path(path: Path) -> str:
    """Offer the nearest name in the same folder, or say which part of the path is missing."""
    folder = path.expanduser().parent
    if not folder.is_dir():
        return f" Its folder {folder} does not exist either."
    return did_you_mean(path.name, (child.name for child in folder.iterdir()))
