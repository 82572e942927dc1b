"""YAML files made into dataclasses; everything that does not fit is collected, to be told at once.

Where a field is declared as text, it is the text that stands in the file: a row called 007, 1e3 or null keeps its name.
A key that stands in one mapping twice is refused, where YAML would forget the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from nd.errors import UserError, did_you_mean
from nd.terminal import unstorable

T = TypeVar("T")
WANTED = {
    str: "text", list: "a list", dict: "a mapping", bool: "true or false", int: "a whole number",
    float: "a number (as in 0.01)",
}  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads plain values, and refuses a key that stands in one mapping twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raises MarkedYAMLError where a key stands in it twice."""
        found: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in found:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands here twice", problem_mark=key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str, kind: type[Any]) -> Any:
    """Return what a file holds.

    Args:
        path: of the file.
        what: it should be, for the message.
        kind: dataclass that says which of its values are text.

    Raises:
        UserError: no such file, no YAML, a key twice, or no UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8")
        return _with_texts(yaml.load(content, Loader), yaml.load(content, yaml.BaseLoader), kind)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from None


def _with_texts(value: Any, written: Any, hint: Any) -> Any:
    """Return a value with what is written where text is declared; ``written`` is the same with every scalar as text."""
    inner = (*get_args(hint), None, None)
    if isinstance(value, list) and isinstance(written, list):
        return [_with_texts(one, text, inner[0]) for one, text in zip(value, written, strict=True)]
    if isinstance(value, dict) and isinstance(written, dict) and len(value) == len(written):
        own = get_type_hints(hint) if is_dataclass(hint) else {}
        pairs = zip(value.values(), written.items(), strict=True)
        return {key: _with_texts(one, text, own.get(key, inner[1])) for one, (key, text) in pairs}
    return written if hint is str and isinstance(written, str) else value


def build(kind: type[T], given: Any, where: str, problems: list[str], **extra: Any) -> T | None:
    """Build a dataclass from a mapping and the fields in ``extra``, which it cannot set.

    What does not fit is added to ``problems``, and the result is then None.
    """
    if not isinstance(given, dict):
        problems.append(f"{where} is {type(given).__name__}, wanted a mapping")
        return None
    known = {item.name: item for item in fields(kind) if item.name not in extra}  # type: ignore[arg-type]
    wrong = [f"{where} has no field {key!r}.{did_you_mean(key, known)}" for key in given if key not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    wrong += [f"{where} lacks {name!r}" for name in needed if name not in given]
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key in given.keys() & known.keys()}
    wrong += [problem for key, hint in hints.items() for problem in _misfits(given[key], hint, f"{where}: {key}")]
    problems += wrong
    return None if wrong else kind(**given, **extra)


def _misfits(value: Any, hint: Any, where: str) -> list[str]:
    """Return what is wrong with a value that is declared as one of ``WANTED``, and with the values in it."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind not in WANTED:
        return []
    if kind in (bool, int, float):
        return [] if _is_number(value, kind) else [f"{where} is {value!r}, wanted {WANTED[kind]}"]
    if not isinstance(value, kind):
        return [f"{where} is {type(value).__name__}, wanted {WANTED[kind]}"]
    if kind is str:
        return [problem] if (problem := unstorable(value, where)) else []
    parts = [(one, inner[0]) for one in value]
    parts += [(one, inner[1]) for one in value.values()] if kind is dict else []
    return [problem for one, its_hint in parts for problem in _misfits(one, its_hint, where)]


def _is_number(value: Any, kind: type[Any]) -> bool:
    """Whether a value is a finite number of a kind; true and false are none but of their own."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else int) and math.isfinite(value)


def build_all(kind: type[T], given: dict[str, Any], key: str, problems: list[str]) -> list[T]:
    """Build a dataclass from each item of ``given[key]``."""
    items = given.get(key) or []
    if not isinstance(items, list):
        problems.append(f"{key} is {type(items).__name__}, wanted a list")
        return []
    built = [build(kind, item, f"{key}[{i}]", problems) for i, item in enumerate(items)]
    return [item for item in built if item is not None]


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raise UserError with all problems of a file, if there are any."""
    if problems:
        raise UserError(f"{path} cannot be used:\n  - " + "\n  - ".join(problems))
