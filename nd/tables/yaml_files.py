"""YAML files made into dataclasses; everything that does not fit is collected, to be told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nd.errors import UserError, did_you_mean

T = TypeVar("T")


def read_yaml(path: Path, what: str) -> Any:
    """Return what a file holds. UserError, with ``what`` it should be: no such file, or no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from None


def build(kind: type[T], given: Any, where: str, problems: list[str], **extra: Any) -> T | None:
    """Build a dataclass from a mapping; what does not fit is added to ``problems``, and the result is then None."""
    if not isinstance(given, dict):
        problems.append(f"{where} is {type(given).__name__}, wanted a mapping")
        return None
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    wrong = [f"{where} has no field {key!r}.{did_you_mean(key, known)}" for key in given if key not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    wrong += [f"{where} lacks {name!r}" for name in needed if name not in given and name not in extra]
    problems += wrong
    return None if wrong else kind(**given, **extra)


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
