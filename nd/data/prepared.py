"""The prepared format in one place: where its files lie, and the readers and writers of both of them."""

from __future__ import annotations

from pathlib import Path

from nd.data.splits import BY_SUBJECT, SESSIONS_OF, Split, get_split, subject_split
from nd.data.stimuli import Stimuli, check_allowed, write_stimuli
from nd.data.subject import Subject, mean_betas
from nd.data.subject_file import SubjectTable, write_subject
from nd.errors import unknown
from nd.schema import Config

__all__ = [
    "Stimuli",
    "Subject",
    "SubjectTable",
    "check_allowed",
    "data_folder",
    "manifest_path",
    "mean_betas",
    "open_subject",
    "split_of",
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


def open_subject(cfg: Config, name: str = "") -> Subject:
    """One subject, by default ``subject.name``, through ``subject.roi`` and in the sessions that the split uses."""
    return Subject(subject_path(cfg, name), cfg.subject.roi, SESSIONS_OF.get(cfg.data.split, 0))


def split_of(cfg: Config) -> Split:
    """The split of the configuration; where images differ by subject, that of ``subject.name``'s images.

    Raises UserError for a split of another data set, too few images, or, for NSD, sessions and images that are not
    those its name stands for.
    """
    if cfg.data.source not in BY_SUBJECT:
        return get_split(cfg.data)
    subject = Subject(subject_path(cfg), sessions=SESSIONS_OF.get(cfg.data.split, 0))
    if cfg.data.source != "own":
        from nd.data.nsd.facts import check_split

        check_split(cfg.data.split, subject)
    return subject_split(cfg.data, subject.image_id, subject.held_out)
