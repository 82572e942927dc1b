"""How a field of the configuration is declared."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def opt(default: Any, text: str, *, identity: bool = True, choices: tuple[Any, ...] = (), path: bool = False) -> Any:
    """Declare a field: default, help text, identity or not, allowed values, and whether a given path must exist."""
    metadata = {"help": text, "identity": identity, "choices": choices, "path": path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
