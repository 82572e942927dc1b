"""Composition of conf/ over the schema's defaults, permissive and without side effects.

A wrong key or value composes all the same, so that the check behind it can report every problem at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nd.config import Config
from nd.config.check import build
from nd.config.overrides import group_names
from nd.errors import UserError

HYDRA_VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """Return the folder of the configuration files: nd/_conf in an installed wheel, conf/ beside nd/ in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"no conf/config.yaml beside {package} and none in {package / '_conf'}: the installation is incomplete."
    )


def search_folders(overrides: Sequence[str] = ()) -> list[Path]:
    """Return conf/ and the folders that ``hydra.searchpath=[file://...]`` adds."""
    folders = [conf_dir()]
    for text in search_path(overrides):
        for one in text.partition("=")[2].strip("[]").split(","):
            folder = Path(one.strip(" '\"").removeprefix("file://"))
            if not folder.is_dir():
                raise UserError(f"hydra.searchpath: {folder} is not a folder.")
            folders.append(folder)
    return folders


def search_path(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if text.startswith("hydra.searchpath=")]


def assemble(overrides: list[str]) -> tuple[Config, list[str]]:
    """Compose without raising: the configuration as far as it is sound, and the problems of files and values.

    Files are read and merged once per choice of groups; fields are set on a copy, as Hydra does it after merging.
    """
    folders = search_folders(overrides)
    groups = {*group_names(folders), "hydra.searchpath"}
    chosen = tuple(text for text in overrides if text.partition("=")[0] in groups)
    loaded, choices, problems = _load(chosen)
    job = copy.deepcopy(loaded)
    for text in overrides:
        if text not in chosen:
            override = OverridesParser.create().parse_override(text)
            OmegaConf.update(job, override.key_or_group, override.value(), merge=True)
    values, unresolved = _resolved(job)
    config, found = build(values, lambda key: _origin(key, choices, folders))
    config.overrides = list(overrides)
    return config, [*problems, *unresolved, *found]


@lru_cache(maxsize=256)
def _load(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str], tuple[str, ...]]:
    """Return the composed configuration, the chosen option of every group, and problems of composition itself."""
    try:
        with _own_hydra() as own:
            loaded = own.compose_config("config", list(overrides), RunMode.RUN, from_shell=False)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        return OmegaConf.create(), {}, (f"conf: {' '.join(str(error).split())}",)
    choices = {str(k): str(v) for k, v in loaded.hydra.runtime.choices.items()}
    job = OmegaConf.masked_copy(loaded, [key for key in loaded if key != "hydra"])
    OmegaConf.set_struct(job, False)
    return job, choices, ()


@contextmanager
def _own_hydra() -> Iterator[Any]:
    """Yield a Hydra over conf/ without disturbing one that may be running a job."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = outer


def _resolved(job: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return plain values with interpolations resolved; a broken one is a problem and leaves its text."""
    try:
        return OmegaConf.to_container(job, resolve=True), []  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        problem = f"{error.full_key}: {str(error).splitlines()[0]}."
        return OmegaConf.to_container(job, resolve=False), [problem]  # type: ignore[return-value]


def _origin(key: str, choices: dict[str, str], folders: Sequence[Path]) -> str:
    """Name the conf file among the chosen ones that sets ``key``; empty when none does."""
    for folder in folders:
        files = [folder / "config.yaml", *(folder / group / f"{option}.yaml" for group, option in choices.items())]
        for file in files:
            if not file.is_file():
                continue
            text = file.read_text(encoding="utf-8")
            package = "" if "@package _global_" in text or file.name == "config.yaml" else f"{file.parent.name}."
            inner = key.removeprefix(package) if key.startswith(package) else None
            if inner and OmegaConf.select(OmegaConf.create(text), inner, default=None) is not None:
                return f" in {file.relative_to(folder.parent)}"
    return ""


def schema_defaults() -> dict[str, Any]:
    """Return the schema's defaults as the plain dictionary that Hydra merges conf/ into."""
    values = asdict(Config())
    del values["overrides"]
    return values


ConfigStore.instance().store(name="nd_schema", node=schema_defaults(), provider="nd")
