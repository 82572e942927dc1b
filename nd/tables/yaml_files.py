"""YAML files made into dataclasses; everything that does not fit is collected, to be told at once.

Where a field is declared as text, it is the text that stands in the file: a row called 007, 1e3 or null keeps its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from nd.errors import UserError, did_you_mean
from nd.terminal import unstorable

T = TypeVar("T")
WANTED = {str: "text", list: "a list", dict: "a mapping"}


def read_yaml(path: Path, what: str, kind: type[Any]) -> Any:
    """Return what a file holds.

    Args:
        path: of the file.
        what: it should be, for the message.
        kind: dataclass that says which of its values are text.

    Raises:
        UserError: no such file, no YAML, or no UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8")
        return _with_texts(yaml.safe_load(content), yaml.load(content, yaml.BaseLoader), kind)
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
    """Build a dataclass from a mapping; what does not fit is added to ``problems``, and the result is then None."""
    if not isinstance(given, dict):
        problems.append(f"{where} is {type(given).__name__}, wanted a mapping")
        return None
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    wrong = [f"{where} has no field {key!r}.{did_you_mean(key, known)}" for key in given if key not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    wrong += [f"{where} lacks {name!r}" for name in needed if name not in given and name not in extra]
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key in given}
    wrong += [problem for key, hint in hints.items() for problem in _misfits(given[key], hint, f"{where}: {key}")]
    problems += wrong
    return None if wrong else kind(**given, **extra)


def _misfits(value: Any, hint: Any, where: str) -> list[str]:
    """Return what is wrong with a value that is declared as text, list or mapping, and with the texts in it."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind not in WANTED:
        return []
    if not isinstance(value, kind):
        return [f"{where} is {type(value).__name__}, wanted {WANTED[kind]}"]
    if kind is str:
        return [problem] if (problem := unstorable(value, where)) else []
    parts = [(one, inner[0]) for one in value]
    parts += [(one, inner[1]) for one in value.values()] if kind is dict else []
    return [problem for one, its_hint in parts for problem in _misfits(one, its_hint, where)]


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
