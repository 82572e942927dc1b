"""Every field of the configuration as tables, read from the schema and from what each component declares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the code beside these pages, not an installed one

from nd.config.components import CHOSEN_BY, KINDS, found
from nd.config.fields import declared
from nd.config.help import shown
from nd.config.known import BASES, FILLED_IN
from nd.config.schema import Config

HEAD = ["| field | default | |", "| --- | --- | --- |"]


def tables() -> str:
    """Return a section for each group, and below it one for each choice that has fields of its own."""
    config = Config()
    groups = [one.name for one in fields(config) if is_dataclass(getattr(config, one.name))]
    alone = [one for one in fields(config) if one.name not in (*groups, *FILLED_IN)]
    sections = [line for group in groups for line in _group(group, getattr(config, group))]
    return "\n".join([*sections, "## Of no group", "", *HEAD, *(_row(one, config) for one in alone)])


def _group(group: str, value: Any) -> Iterator[str]:
    base = BASES.get(group, type(value))
    yield from (f"## {group}", "", (base.__doc__ or "").strip(), "", *HEAD)
    own = [one for one in fields(base) if one.name not in FILLED_IN]
    yield from (_row(one, base(), f"{group}.") for one in own)
    yield ""
    for name, component in found(CHOSEN_BY[group]).components.items() if group in CHOSEN_BY else ():
        settings = component.settings
        further = [one for one in fields(settings) if one.name not in {two.name for two in own}]
        if further:
            yield from (f"### {KINDS[CHOSEN_BY[group]].key}={name}", "", *HEAD)
            yield from (_row(one, settings(), f"{group}.") for one in further)
            yield ""


def _row(one: Any, holder: Any, prefix: str = "") -> str:
    facts = declared(one)
    said = facts.help + (f" ({', '.join(str(choice) for choice in facts.choices)})" if facts.choices else "")
    mark = "" if facts.identity else "; no part of a run's identity"
    cells = f"`{prefix}{one.name}`", f"`{shown(getattr(holder, one.name))}`", said + mark
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
