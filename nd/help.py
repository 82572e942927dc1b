"""The texts of ``nd --help`` and ``nd VERB --help``, made from the verbs' docstrings, conf/ and the schema.

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

from nd import __version__
from nd.composing import conf_dir
from nd.config import compose
from nd.errors import UserError
from nd.overrides import group_names, group_options
from nd.schema import Config

VERBS = {
    "prepare": "raw data set to the prepared format",
    "extract": "images to one target's features",
    "train": "fit one mapper from voxels to one target",
    "predict": "voxels to predicted targets",
    "reconstruct": "predicted or true targets to images",
    "evaluate": "images to scores; the only verb that compares with test stimuli",
    "run": "the whole chain, doing only what is missing",
    "table": "run folders to a table (md, csv, tex)",
    "report": "the table with pictures and plots, as one HTML page",
    "doctor": "what is present, what is missing, how large, which terms apply",
}
EXAMPLES = """\
examples
  nd run experiment=scenes debug=fast          a whole table in under a minute, on the embedded world
  nd run subject=subj02 guidance.kappa=0       one configuration, no guidance
  nd run -m subject=subj01,subj02 seed=1,2     a sweep: one job for each combination
  nd train target=c --cfg job                  print the configuration, run nothing
  nd doctor experiment=digits69                what that experiment needs"""
FIELD_COLUMN = 42  # width of "group.field=default" before the comment starts


def overview() -> str:
    """Return the text of ``nd --help``."""
    verbs = [f"  {name:<12} {text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            f"nd {__version__}: reconstruct seen images from fMRI.",
            "",
            "usage  nd VERB [group=option] [group.field=value] [-m] [--cfg job]",
            "",
            "verbs",
            *verbs,
            "",
            "`nd VERB --help` explains every group and field.",
            "",
            EXAMPLES,
        ]
    )


def verb_help(name: str, overrides: Sequence[str] = ()) -> str:
    """Return the text of ``nd VERB --help``; defaults are those composed with ``overrides`` (experiment=...)."""
    config, note = _composed(overrides)
    lines = [
        f"usage  nd {name} [group=option] [group.field=value] [-m] [--cfg job]",
        "",
        *_wrapped(_docstring(name) or VERBS.get(name, ""), ""),
        "",
        "groups (group=option)",
        *_groups(conf_dir()),
        "",
        f"fields (field=value), as composed {note}; * is part of a run's identity",
        *_fields(config),
        "",
        "flags",
        "  -m            sweep: several values (seed=1,2) run one job each, with hydra/launcher=joblib side by side",
        "  --cfg job     print the composed configuration and run nothing",
        "  --config-dir  a folder of your own groups and experiments, searched after conf/",
    ]
    return "\n".join(lines)


def _composed(overrides: Sequence[str]) -> tuple[Config, str]:
    try:
        return compose(overrides), f"with {' '.join(overrides)}" if overrides else "with nothing given"
    except UserError:  # help must answer even when what stands beside it is wrong
        return compose(), "with nothing given"


def _docstring(name: str) -> str:
    """Return the first paragraph of the docstring of the verb's function, read without importing its module."""
    file = Path(__file__).parent / f"{name}.py"
    if not file.is_file():
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    texts = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    text = next((text for text in [*texts, ast.get_docstring(tree)] if text), "")
    return " ".join(text.split("\n\n")[0].split())


def _groups(folder: Path) -> Iterator[str]:
    for group in group_names([folder]):
        yield f"  {group:<12} {', '.join(group_options(group, [folder]))}"


def _fields(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield one entry per field: name, composed value, comment, allowed values."""
    for one in fields(node):
        value = getattr(node, one.name)
        if is_dataclass(one.default_factory):
            yield ""
            yield f"  {one.name}: {(type(value).__doc__ or '').strip()}"
            yield from _fields(value, f"{one.name}.")
        elif one.name != "overrides":
            comment = one.metadata["help"]
            if one.metadata["choices"]:
                comment += f" [{' | '.join(str(choice) for choice in one.metadata['choices'])}]"
            yield from _entry(f"{prefix}{one.name}={_shown(value)}", one.metadata["identity"], comment)


def _entry(left: str, identity: bool, comment: str) -> Iterator[str]:
    left = f"  {'*' if identity else ' '} {left}"
    lines = _wrapped(comment, " " * FIELD_COLUMN)
    if len(left) < FIELD_COLUMN:
        yield f"{left:<{FIELD_COLUMN}}{lines[0].strip()}"
        yield from lines[1:]
    else:
        yield left
        yield from lines


def _shown(value: Any) -> str:
    """Write a value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_shown(item) for item in value)}]"
    return "''" if value == "" else f"{value:.10g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) or [indent]
