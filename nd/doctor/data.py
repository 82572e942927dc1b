"""The data of a configuration: prepared, or to be prepared from raw files that are there or are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nd.config import Config
from nd.data.images import ImageFile
from nd.data.pieces import Piece, is_prepared
from nd.data.prepared import Stimuli, data_folder, open_subject, split_of, stimuli_path, subject_path
from nd.data.rows import RowFile
from nd.doctor.listing import download_text
from nd.doctor.need import Need, byte_text, size_text
from nd.doctor.own import own_needs
from nd.doctor.tree import Tree, survey
from nd.errors import UserError

RELEASES = ("nsd", "mindeye2")


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


# ---- what is needed


@dataclass(frozen=True)
class DataNeeds:
    """What is prepared, the raw files behind what is not (``raw``, of a release), and both as needs."""

    prepared: Prepared
    raw: Tree | None = None
    needs: list[Need] = field(default_factory=list)


def data_needs(cfg: Config, pieces: Sequence[Piece]) -> DataNeeds:
    """Look at everything behind the pieces of a configuration; nothing is read through."""
    prepared = look(cfg, pieces)
    raw = survey(cfg, prepared.absent) if prepared.absent and cfg.data.source in RELEASES else None
    behind = list(_behind(cfg, prepared, raw))
    makeable = not any(need.state in ("missing", "wrong") for need in behind)
    return DataNeeds(prepared, raw, [*_prepared_needs(prepared, makeable), *behind])


def _prepared_needs(prepared: Prepared, makeable: bool) -> Iterator[Need]:
    folder = str(prepared.folder)
    if prepared.problem:
        yield Need("prepared data", "wrong", folder, prepared.problem)
    if prepared.ok:
        links = "".join(f"; reads {file}, {size_text(file)}" for file in prepared.linked)
        yield Need("prepared data", "ok", folder, f"prepared, {_folder_text(prepared.folder)}{links}")
    elif prepared.absent:
        writes = f"`nd prepare` writes {', '.join(prepared.absent)}"
        if makeable:
            yield Need("prepared data", "made", folder, writes)
        else:
            yield Need("prepared data", "missing", folder, f"{writes} once what it needs is there")


def _folder_text(folder: Path) -> str:
    """Size of the files themselves; what they link to lies elsewhere."""
    return byte_text(sum(file.stat().st_size for file in folder.iterdir() if file.is_file()))


def _behind(cfg: Config, prepared: Prepared, raw: Tree | None) -> Iterator[Need]:
    """The raw files of what is not prepared."""
    if raw is not None:
        yield _raw_need(cfg, raw)
    elif cfg.data.source == "own" and prepared.absent:
        yield from own_needs(cfg, prepared.absent, stimuli_path(cfg))
    elif cfg.data.source == "digits69":
        if cfg.data.file:  # that it exists has been checked with the configuration
            yield Need("raw file", "ok", cfg.data.file, size_text(Path(cfg.data.file)))
        elif prepared.absent:
            note = "give data.file=<path>/digit69_28x28.mat (public: github.com/ChangdeDu/DGMM)"
            yield Need("raw file", "missing", "-", note)
        else:
            yield Need("raw file", "ok", "-", "not needed any more")


def _raw_need(cfg: Config, raw: Tree) -> Need:
    where = str(raw.root or (cfg.data.root or "data.root is not given"))
    if raw.complete:
        return Need("raw files", "ok", where, "all that is needed is there; listed above")
    missing, wrong = raw.of("missing"), raw.of("wrong")
    parts = [f"{len(missing)} of {len(raw.files)} missing"] if missing else []
    parts += [f"{len(wrong)} of no use"] if wrong else []
    if missing and not raw.simulated:
        parts.append(download_text(raw))
    said = ", ".join(parts)
    note = "; ".join([*([f"{said}; listed above"] if said else []), *raw.problems])
    state = "missing" if missing or not raw.root else "wrong"
    return Need("raw files", state, where, note, brief=said or "see above")
