"""All fields that can be set, by dotted name: of the groups, and of every component, with those that own them."""

from __future__ import annotations

import typing
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from nd.config.components import CHOSEN_BY, found
from nd.config.fields import Declared, declared
from nd.config.schema import Config, DataConfig, MapperConfig, MethodConfig, TargetConfig

BASES: dict[str, type[Any]] = {
    "data": DataConfig,
    "method": MethodConfig,
    "target": TargetConfig,
    "mapper": MapperConfig,
}
FILLED_IN = ("decodings", "overrides")
PARTS_OF_DECODING = ("target", "mapper", "network", "training")  # groups that a method's recipe may set per target


@dataclass(frozen=True)
class Known:
    """A field: its type, what is declared of it, and the components that have it (none: all of its group)."""

    hint: Any
    facts: Declared
    owners: tuple[str, ...] = ()

    @property
    def many(self) -> bool:
        """Whether it holds a list."""
        return typing.get_origin(self.hint) is list

    @property
    def text(self) -> bool:
        """Whether it holds text, or a list of texts."""
        return (typing.get_args(self.hint)[0] if self.many else self.hint) is str


def group_type(one: Field[Any]) -> type[Any] | None:
    """Return the dataclass of a group of ``Config`` (its base, where fields depend on a choice); None for a field."""
    if one.name in BASES:
        return BASES[one.name]
    return one.default_factory if is_dataclass(one.default_factory) else None


@cache
def known_fields() -> dict[str, Known]:
    """Return every field that can be set, by dotted name."""
    result: dict[str, Known] = {}
    for one in fields(Config):
        group = group_type(one)
        if group is not None:
            result |= _of(group, f"{one.name}.")
            result |= _of_components(one.name, set(result)) if one.name in CHOSEN_BY else {}
        elif one.name not in FILLED_IN:
            result[one.name] = Known(typing.get_type_hints(Config)[one.name], declared(one))
    return result


def _of(group: type[Any], prefix: str, owners: tuple[str, ...] = ()) -> dict[str, Known]:
    hints = typing.get_type_hints(group)
    return {f"{prefix}{one.name}": Known(hints[one.name], declared(one), owners) for one in fields(group)}


def _of_components(group: str, base: set[str]) -> dict[str, Known]:
    """Return the fields that components add to a group, each with all components that have it."""
    result: dict[str, Known] = {}
    for name, one in found(CHOSEN_BY[group]).components.items():
        for key, known in _of(one.settings, f"{group}.", (name,)).items():
            if key not in base:
                before = result[key].owners if key in result else ()
                result[key] = Known(known.hint, known.facts, (*before, name))
    return result


def per_target(key: str) -> tuple[str, str] | None:
    """Return (target, key inside its recipe) of a key below ``method.targets``; None for any other."""
    parts = key.split(".", 3)
    return (parts[2], parts[3]) if parts[:2] == ["method", "targets"] and len(parts) == 4 else None


def known_field(key: str) -> Known | None:
    """Return what is known of a key; of ``method.targets.<name>.<field>`` what is known of the field."""
    inside = per_target(key)
    if inside is None:
        return known_fields().get(key)
    _, inner = inside
    if inner == "roi":
        return known_fields()["subject.roi"]
    return known_fields().get(inner) if inner.partition(".")[0] in PARTS_OF_DECODING else None
