"""What is there of the prepared data, and whether it can be used by this configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nd.config import Config
from nd.data.images import ImageFile
from nd.data.pieces import Piece, is_prepared
from nd.data.prepared import Stimuli, data_folder, open_subject, split_of, stimuli_path, subject_path
from nd.data.rows import RowFile
from nd.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """The prepared folder: pieces that are ``absent``, ``linked`` files, and the ``problem`` with what is there."""

    folder: Path
    absent: list[str] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything is there and of use."""
        return not self.absent and not self.problem


def look(cfg: Config, pieces: Sequence[Piece]) -> Prepared:
    """Look for the pieces of a configuration, and open those that are there as a run would."""
    folder, absent = data_folder(cfg), []
    try:
        absent = [piece.name for piece in pieces if not is_prepared(folder, piece)]
        return Prepared(folder, absent, _opened(cfg, absent))
    except (UserError, OSError) as error:
        return Prepared(folder, absent, problem=str(error))


def unread(cfg: Config) -> list[Piece]:
    """The pieces of own data, whose settings hold hashes of all files: told here by their names alone."""
    return [Piece(name, {}, _never) for name in ("stimuli.h5", f"{cfg.subject.name}.h5")]


def _never(path: Path) -> None:
    raise AssertionError(f"{path}: nothing is written here")


def _opened(cfg: Config, absent: Sequence[str]) -> list[Path]:
    """Files elsewhere that the prepared ones lead to. UserError where anything is not as a run needs it."""
    stimuli, subject, linked = stimuli_path(cfg), subject_path(cfg), []
    if stimuli.name not in absent:
        Stimuli(stimuli)
        linked.append((stimuli, ImageFile(stimuli).file))
    if subject.name not in absent:
        open_subject(cfg)
        linked.append((subject, RowFile(subject).file))
    if len(linked) == 2:
        split_of(cfg)
    return [file for own, file in linked if file.resolve() != own.resolve()]
