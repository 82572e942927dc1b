"""The prepared format in one place: where its files lie, and the readers and writers of both of them."""

from __future__ import annotations

from pathlib import Path

from nd.data.stimuli import Stimuli, check_allowed, write_stimuli
from nd.data.subject import Subject, mean_betas, write_subject
from nd.errors import unknown
from nd.schema import Config

__all__ = [
    "Stimuli",
    "Subject",
    "check_allowed",
    "data_folder",
    "manifest_path",
    "mean_betas",
    "stimuli_path",
    "subject_path",
    "write_stimuli",
    "write_subject",
]


def data_folder(cfg: Config) -> Path:
    """Folder of the prepared data set: ``<paths.data>/<data.name>``."""
    return Path(cfg.paths.data) / cfg.data.name


def subject_path(cfg: Config, name: str = "") -> Path:
    """Prepared file of one subject, by default ``subject.name``. Raises UserError for a subject of no such data set."""
    name = name or cfg.subject.name
    if name not in cfg.data.subjects:
        raise unknown(f"subject of data={cfg.data.name}", name, cfg.data.subjects)
    return data_folder(cfg) / f"{name}.h5"


def stimuli_path(cfg: Config) -> Path:
    """Prepared stimuli file of the data set."""
    return data_folder(cfg) / "stimuli.h5"


def manifest_path(cfg: Config) -> Path:
    """What the prepared folder was made from: settings, hashes and sizes."""
    return data_folder(cfg) / "manifest.json"
