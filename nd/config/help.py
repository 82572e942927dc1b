"""The text of ``nd VERB --help``, made from the docstrings of the verbs, conf/ and the schema.

Nothing here imports a verb: docstrings are read from the source, so help answers at once.
"""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nd.config.application import compose
from nd.config.components import CHOSEN_BY, KINDS, PACKAGE, choices_of, found
from nd.config.conf_files import search_folders
from nd.config.fields import declared
from nd.config.known import BASES, FILLED_IN
from nd.config.overrides import group_names, group_options
from nd.config.schema import Config
from nd.errors import UserError, unknown
from nd.verbs import OF_RUNS, VERBS

# What matters for a verb, in the order in which its help explains it; it takes the other groups too.
MATTERS = {
    "prepare": ("data", "subject", "layout", "paths"),
    "extract": ("target", "data", "method", "backbone", "trainer"),
    "train": ("target", "mapper", "network", "training", "subject", "data", "trainer", "logger", "seed", "control"),
    "predict": ("subject", "mapper", "data", "method", "part", "control", "seed"),
    "reconstruct": ("method", "guidance", "backbone", "subject", "data", "trainer", "part", "features", "seed"),
    "evaluate": (
        "protocol", "subject", "data", "method", "logger", "part", "images", "order", "subset", "images_hash",
    ),
    "run": (
        "method", "guidance", "mapper", "subject", "data", "protocol", "trainer", "logger",
        "table", "part", "features", "control", "seed",
    ),
    "table": ("subject", "paths", "logger", "table", "check"),
    "report": ("subject", "paths", "table"),
    "roi": ("method", "guidance", "subject", "data", "trainer", "rois", "part", "seed"),
    "doctor": ("data", "method", "backbone", "protocol", "paths", "table"),
}  # fmt: skip
EVERYTHING = "all"
OVER_ALL = ("experiment", "debug")  # groups that set fields of others
USAGES = {
    "sweep": "nd sweep [TABLE] [group=option] [group.field=value,value] [dry_run=true] [hydra/launcher=joblib]",
    "tune": "nd tune [group=option] [group.field=value,value] ['group.field=interval(low,high)'] [tune.trials=30]",
}
OF_ONE = (  # flags of the verbs of one configuration
    "  -m            sweep: several values (seed=1,2) run one job each, with hydra/launcher=joblib side by side",
    "  --cfg job     print the composed configuration and run nothing",
)
FIELD_COLUMN = 42  # width of "group.field=default" before the comment starts


def verb_help(name: str, words: Sequence[str] = ()) -> str:
    """Return the text of ``nd VERB --help``.

    Args:
        name: of the verb.
        words: that stand beside ``--help``: overrides (experiment=...), with which the defaults are composed; groups,
            which are explained instead of those that matter for the verb; or ``all``.

    Raises:
        UserError: a word that is neither.
    """
    if name in OF_RUNS:
        described = [line for paragraph in _description(name) for line in ("", *_wrapped(paragraph, ""))]
        return "\n".join([f"usage  {OF_RUNS[name]}", *described])
    config, note = _composed([word for word in words if "=" in word])
    chosen = _chosen(name, words)
    folders = search_folders()
    lines = [
        f"usage  {USAGES.get(name, f'nd {name} [group=option] [group.field=value] [-m] [--cfg job]')}",
        "",
        *(line for paragraph in _description(name) for line in _wrapped(paragraph, "")),
        "",
        "groups (group=option)",
        *_groups([group for group in (*OVER_ALL, *chosen) if group in group_names(folders)], folders),
        *_plug_ins(),
        "",
        f"fields (field=value), as composed {note}; * is part of a run's identity",
        *_fields(config, chosen),
        *_further(name, chosen, config),
        "",
        "flags",
        *(() if name in USAGES else OF_ONE),
        "  --config-dir  a folder of your own groups and experiments, searched after conf/",
    ]
    return "\n".join(lines)


def _everything() -> list[str]:
    """Return the groups and the fields of none."""
    return [one.name for one in fields(Config) if one.name not in FILLED_IN]


def _chosen(name: str, words: Sequence[str]) -> list[str]:
    """Return the groups and the fields of none that are explained, in that order."""
    asked = [word for word in words if "=" not in word]
    for word in asked:
        if word != EVERYTHING and word not in _everything():
            raise unknown("group to explain", word, [*_everything(), EVERYTHING])
    if EVERYTHING in asked or name not in MATTERS:
        return _everything()
    given = [word.lstrip("+").partition("=")[0].partition(".")[0] for word in words if "=" in word]
    return asked or list(dict.fromkeys([*MATTERS[name], *(one for one in given if one in _everything())]))


def _further(name: str, chosen: Sequence[str], config: Config) -> Iterator[str]:
    """Yield what else a verb takes, and how to have it explained."""
    others = [one for one in _everything() if one not in chosen]
    groups = [one for one in others if is_dataclass(getattr(config, one))]
    if others:
        alone = [one for one in others if one not in groups]
        said = [f"the groups {', '.join(groups)}" if groups else "", f"the fields {', '.join(alone)}" if alone else ""]
        yield ""
        also, help_of = " and ".join(one for one in said if one), f"nd {name} --help"
        text = f"`nd {name}` also takes {also}: `{help_of} {others[0]}` explains one, `{help_of} {EVERYTHING}` all."
        yield from _wrapped(text, "")


def _composed(overrides: Sequence[str]) -> tuple[Config, str]:
    try:
        return compose(overrides), f"with {' '.join(overrides)}" if overrides else "with nothing given"
    except UserError:  # help must answer even when what stands beside it is wrong
        return compose(), "with nothing given"


def _description(name: str) -> list[str]:
    """Return the paragraphs of the docstring of the verb's module, read without importing it."""
    file = PACKAGE / "doctor" / "report.py" if name == "doctor" else PACKAGE / f"{name}.py"
    if not file.is_file():
        return [VERBS.get(name, "")]
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or VERBS.get(name, "")
    return [" ".join(paragraph.replace("``", "`").split()) for paragraph in text.split("\n\n")]


def _groups(names: Sequence[str], folders: Sequence[Path]) -> Iterator[str]:
    for group in names:
        lines = _wrapped(", ".join(group_options(group, folders)), " " * 15)
        yield f"  {group:<12} {lines[0].strip()}"
        yield from lines[1:]


def _plug_ins() -> Iterator[str]:
    """Yield what could not be loaded of other packages, which takes nothing else down."""
    for kind in KINDS:
        for name, problem in found(kind).broken.items():
            yield f"  plug-in {kind} {name}: {problem}"


def _fields(node: Any, names: Sequence[str] = (), prefix: str = "") -> Iterator[str]:
    """Yield one entry per field: name, composed value, comment, allowed values; fields of no group last.

    Args:
        node: the configuration, or a group.
        names: of its fields that are explained, in that order; of a group all.
        prefix: of their names.
    """
    own = [one for one in fields(node) if one.name not in FILLED_IN and (prefix or one.name in names)]
    own = own if prefix else sorted(own, key=lambda one: list(names).index(one.name))
    ordered = sorted(own, key=lambda one: not is_dataclass(getattr(node, one.name)))
    first_of_root = next((one.name for one in ordered if not prefix and not is_dataclass(getattr(node, one.name))), "")
    for one in ordered:
        if one.name == first_of_root:
            yield ""
            yield "  of no group:"
        value, facts = getattr(node, one.name), declared(one)
        if is_dataclass(value):
            yield ""
            yield from _wrapped(f"{one.name}: {_about(one.name, value)}", "  ")
            yield from _fields(value, prefix=f"{one.name}.")
            yield from _elsewhere(one.name, value)
        else:
            comment, choices = facts.help, facts.choices or choices_of(f"{prefix}{one.name}")
            if choices:
                comment += f" [{' | '.join(str(choice) for choice in choices)}]"
            yield from _entry(f"{prefix}{one.name}={shown(value)}", facts.identity, comment)


def _about(group: str, value: Any) -> str:
    base = (BASES.get(group, type(value)).__doc__ or "").strip()
    own = (type(value).__doc__ or "").strip()
    return base if own == base else f"{base} {own}"


def _elsewhere(group: str, value: Any) -> Iterator[str]:
    """Yield the fields of a group that other choices have, by choice."""
    if group not in CHOSEN_BY:
        return
    kind, own = CHOSEN_BY[group], {one.name for one in fields(value)}
    for name, component in found(kind).components.items():
        others = [one.name for one in fields(component.settings) if one.name not in own]
        if others:
            yield from _wrapped(f"with {KINDS[kind].key}={name} also: {', '.join(others)}", "      ")


def _entry(left: str, identity: bool, comment: str) -> Iterator[str]:
    left = f"  {'*' if identity else ' '} {left}"
    lines = _wrapped(comment, " " * FIELD_COLUMN)
    if len(left) < FIELD_COLUMN:
        yield f"{left:<{FIELD_COLUMN}}{lines[0].strip()}"
        yield from lines[1:]
    else:
        yield left
        yield from lines


def shown(value: Any) -> str:
    """Return a value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}" if value else "{}"
    return "''" if value == "" else f"{value:.10g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) or [indent]
