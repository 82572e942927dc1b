"""What other packages announce by entry points: components, and folders of configuration files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any


def external_components(group: str, broken: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what entry points of a group announce, by the component's name; what cannot be loaded goes to ``broken``.

    A plug-in that fails names itself there and takes nothing else down.
    """
    result: dict[str, Any] = {}
    for point in entry_points(group=group) if group else ():
        try:
            loaded = point.load()
        except Exception as error:
            if broken is not None:
                where = f"{point.value} of {point.dist.name}" if point.dist else point.value
                broken[point.name] = f"{where} cannot be loaded: {type(error).__name__}: {error}"
            continue
        for one in loaded if isinstance(loaded, (tuple, list)) else (loaded,):
            result[getattr(one, "name", point.name)] = one
    return result


def conf_folders() -> Mapping[str, Path]:
    """Return the folders ``conf/`` of packages that announce one (entry point group ``nd.conf``), by name."""
    return _conf_folders(tuple(sys.path))


@lru_cache
def _conf_folders(places: tuple[str, ...]) -> dict[str, Path]:
    """As above; looked up once, for every package that is installed is asked. places: where packages are found."""
    folders: dict[str, Path] = {}
    for point in entry_points(group="nd.conf"):
        try:
            spec = importlib.util.find_spec(point.value)
        except ImportError:
            continue  # its components say that the package is broken
        for place in list(spec.submodule_search_locations or [])[:1] if spec else []:
            folders[point.name] = Path(place) / "conf"
    return {name: folder for name, folder in folders.items() if folder.is_dir()}
