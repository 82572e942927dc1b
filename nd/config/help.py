"""The texts of ``nd --help`` and ``nd VERB --help``, made from the docstrings of the verbs, conf/ and the schema.

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
from nd.config import Config
from nd.config.application import compose
from nd.config.composition import conf_dir
from nd.config.overrides import group_names, group_options
from nd.errors import UserError

VERBS = {
    "prepare": "raw data set to the prepared format",
    "extract": "images to one target's features",
    "train": "fit one mapper from voxels to one target",
    "predict": "voxels to predicted targets",
    "reconstruct": "predicted or true targets to images",
    "evaluate": "images to scores; the only verb that compares with test stimuli",
    "run": "the whole chain, doing only what is missing",
    "table": "run folders to a table (md, csv, tex)",
    "report": "the table with images and plots, as one HTML page",
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
        *(line for paragraph in _description(name) for line in _wrapped(paragraph, "")),
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


def _description(name: str) -> list[str]:
    """Return the paragraphs of the docstring of the verb's module, read without importing it."""
    package = Path(__file__).parents[1]
    file = package / "doctor" / "report.py" if name == "doctor" else package / f"{name}.py"
    if not file.is_file():
        return [VERBS.get(name, "")]
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or VERBS.get(name, "")
    return [" ".join(paragraph.replace("``", "`").split()) for paragraph in text.split("\n\n")]


def _groups(folder: Path) -> Iterator[str]:
    for group in group_names([folder]):
        yield f"  {group:<12} {', '.join(group_options(group, [folder]))}"


def _fields(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield one entry per field: name, composed value, comment, allowed values; fields of no group last."""
    ordered = sorted(fields(node), key=lambda one: not is_dataclass(one.default_factory))
    first_of_root = next((one.name for one in ordered if not prefix and not is_dataclass(one.default_factory)), "")
    for one in ordered:
        if one.name == first_of_root:
            yield ""
            yield "  of no group:"
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
