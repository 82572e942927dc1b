"""The files of conf/: where they lie, which of them sets a key, and the text of a field as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from nd.config.components import PACKAGE
from nd.config.known import known_field
from nd.config.plugins import conf_folders
from nd.errors import UserError


def conf_dir() -> Path:
    """Return the folder of the configuration files: nd/_conf in an installed wheel, conf/ beside nd/ in a checkout."""
    for folder in (PACKAGE / "_conf", PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"no conf/config.yaml beside {PACKAGE} and none in {PACKAGE / '_conf'}: the installation is incomplete."
    )


def search_folders(overrides: Sequence[str] = ()) -> list[Path]:
    """Return conf/, those of plug-ins, and the folders that ``hydra.searchpath=[file://...]`` adds."""
    folders = [conf_dir(), *conf_folders().values()]
    for text in search_path(overrides):
        for one in text.partition("=")[2].strip("[]").split(","):
            folder = Path(one.strip(" '\"").removeprefix("file://"))
            if not folder.is_dir():
                raise UserError(f"hydra.searchpath: {folder} is not a folder.")
            folders += [] if folder in folders else [folder]
    return folders


def search_path(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that add folders."""
    return [text for text in overrides if text.startswith("hydra.searchpath=")]


def _files(choices: Mapping[str, str], folders: Sequence[Path]) -> Iterator[tuple[Path, Path, str]]:
    """Yield (folder, file, package) of every chosen file, the package with a dot; empty for the root."""
    for folder in folders:
        files = [folder / "config.yaml", *(folder / group / f"{option}.yaml" for group, option in choices.items())]
        for file in files:
            if file.is_file():
                rooted = "@package _global_" in file.read_text(encoding="utf-8") or file.name == "config.yaml"
                yield folder, file, "" if rooted else f"{file.parent.name}."


def origin_of(key: str, choices: Mapping[str, str], folders: Sequence[Path]) -> str:
    """Name the conf file among the chosen ones that sets ``key``; empty when none does."""
    for folder, file, package in _files(choices, folders):
        inner = key.removeprefix(package) if key.startswith(package) else None
        text = file.read_text(encoding="utf-8")
        if inner and OmegaConf.select(OmegaConf.create(text), inner, default=None) is not None:
            return f" in {file.relative_to(folder.parent)}"
    return ""


def keep_texts(values: dict[str, Any], choices: Mapping[str, str], folders: Sequence[Path]) -> None:
    """Give fields declared as text the text that stands in their file, where YAML made something else of it."""
    for key, node, name in list(_leaves(values)):
        known = known_field(key)
        if known is None or not known.text or isinstance(node[name], (str, dict)):
            continue
        if known.many and not (isinstance(node[name], list) and any(not isinstance(v, str) for v in node[name])):
            continue
        written = [
            text for text in (_written(key, file, package) for _, file, package in _files(choices, folders)) if text
        ]
        if written:
            node[name] = written[-1]


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values, name


def _written(key: str, file: Path, package: str) -> Any:
    """Return the text (or texts of a list) that a YAML file holds for a key, as written; None where it does not."""
    if not key.startswith(package):
        return None
    node = yaml.compose(file.read_text(encoding="utf-8"))
    for part in key.removeprefix(package).split("."):
        inner = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in inner if name.value == part), None)
    if isinstance(node, yaml.SequenceNode):
        return [item.value for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else None
