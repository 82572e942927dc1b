"""The files of a downloaded release that a configuration reads, and which of them are there and whole.

What is prepared already needs its raw files no more, so only those behind absent pieces are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from nd.config import Config
from nd.data import captions
from nd.data.mindeye2 import tree as mindeye2
from nd.data.mindeye2.betas import open_betas
from nd.data.mindeye2.trials import n_sessions
from nd.data.nsd import tree as nsd
from nd.data.nsd.design import read_trials
from nd.data.nsd.facts import TRIALS_PER_SESSION, person
from nd.data.nsd.tree import Expected
from nd.data.nsd.volumes import read_mask
from nd.data.splits import SESSIONS_OF
from nd.doctor.whole import fault
from nd.errors import UserError
from nd.files import located

STIMULI = "stimuli.h5"
NIFTI_HEADER = 352  # bytes before the values of a NIfTI-1 file without extensions
NSD_IMAGES = (nsd.STIM_INFO, nsd.STIMULI, *nsd.COCO_CAPTIONS)  # read for the stimuli and for nothing else
MINDEYE2_IMAGES = (mindeye2.IMAGES, mindeye2.CAPTIONS)
SESSION = "/betas_session"  # in the path of a session of NSD
OTHERS = "trials of other data.subjects"  # say which images they saw


@dataclass(frozen=True)
class RawFile:
    """One file that is expected: ``path`` and ``size`` where it is there, ``fault`` why it is of no use."""

    entry: Expected
    path: Path | None = None
    size: int = 0
    fault: str = ""

    @property
    def state(self) -> str:
        """One of "ok", "wrong", "missing", and "absent" for an optional file that is not there."""
        if self.path is None:
            return "missing" if self.entry.needed else "absent"
        return "wrong" if self.fault else "ok"

    @property
    def n_bytes(self) -> int:
        """Its size; of one that is not there, that of the released file (0: small or unknown)."""
        return self.size if self.path else self.entry.n_bytes


@dataclass(frozen=True)
class Tree:
    """Everything expected below ``root`` (None: no such folder), and what stands in the way beside missing files."""

    root: Path | None
    simulated: bool
    files: list[RawFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, *states: str) -> list[RawFile]:
        """The files in some states."""
        return [file for file in self.files if file.state in states]

    @property
    def complete(self) -> bool:
        """Whether everything needed is there, as far as can be told."""
        return not self.problems and not self.of("wrong", "missing")


def survey(cfg: Config, absent: Collection[str]) -> Tree:
    """Look at the raw files behind the prepared pieces that are ``absent`` (names of files)."""
    try:
        root = nsd.check_root(cfg.data.root, cfg.data.source)
        problems = _unlike(cfg, root)
    except (UserError, OSError) as error:
        root, problems = None, [str(error)] if cfg.data.root else []
    if root is None and cfg.data.simulated:  # nobody knows what such a tree would hold
        hint = f"`nd prepare data=scenes layout={cfg.data.source}` writes a simulated tree."
        return Tree(None, True, problems=[*problems, hint])
    simulated = root is not None and nsd.simulated(root)
    entries = (_nsd if cfg.data.source == "nsd" else _mindeye2)(cfg, root, absent)
    files = [_look(cfg, entry, root, measured=not simulated) for entry in entries]
    return Tree(root, simulated, files, [*problems, *_other_problems(cfg, root, absent)])


def _unlike(cfg: Config, root: Path) -> list[str]:
    try:
        nsd.check_simulated(root, cfg.data.simulated)
    except UserError as error:
        return [str(error)]
    return []


# ---- what is expected ------------------------------------------------------------------------------------------------


def _nsd(cfg: Config, root: Path | None, absent: Collection[str]) -> list[Expected]:
    data, subject = cfg.data, cfg.subject.name
    files = _with_mask(nsd.expected(subject, data.betas, data.sessions or scanned(root, subject)), subject, data.mask)
    if data.captions:  # they lie somewhere else
        files = [file for file in files if file.path not in nsd.COCO_CAPTIONS]
    if STIMULI not in absent:
        files = [file for file in files if file.path not in NSD_IMAGES]
    if f"{subject}.h5" not in absent:
        files = [file for file in files if file.path in (nsd.DESIGN, *NSD_IMAGES)]
    return files


def scanned(root: Path | None, subject: str) -> int:
    """Sessions of a subject by the tree's own design, or by NSD's where there is none."""
    try:
        return read_trials(root, subject).planned if root else person(subject).sessions
    except UserError:
        return person(subject).sessions


def _with_mask(files: list[Expected], subject: str, mask: str) -> list[Expected]:
    """Which volume is needed as the mask: nsdgeneral, another ROI volume, or none (a file of one's own)."""
    wanted = nsd.roi_path(subject, mask)
    out = [
        replace(file, needed=file.path == wanted, what="mask" if file.path == wanted else "ROIs")
        if file.path.startswith(nsd.roi_path(subject, "").removesuffix(".nii.gz"))
        else file
        for file in files
    ]
    if nsd.own_mask(mask) or any(file.path == wanted for file in out):
        return out
    return [Expected(wanted, "mask"), *out]


def _mindeye2(cfg: Config, root: Path | None, absent: Collection[str]) -> list[Expected]:
    subject, others = cfg.subject.name, [name for name in cfg.data.subjects if name != cfg.subject.name]
    mine = [file for file in mindeye2.expected(subject) if not file.path.endswith(".tar")]
    if cfg.data.captions:
        mine = [file for file in mine if file.path != mindeye2.CAPTIONS]
    if STIMULI not in absent:
        mine = [file for file in mine if file.path not in MINDEYE2_IMAGES]
    if f"{subject}.h5" not in absent:
        mine = [file for file in mine if file.path in MINDEYE2_IMAGES]
    mine += _tars(root, subject, "training trials", "test trials")
    if STIMULI in absent:
        for name in others:
            mine += _tars(root, name, OTHERS, OTHERS)
    return mine


def _tars(root: Path | None, subject: str, train: str, test: str) -> list[Expected]:
    sessions = n_sessions(root, subject) if root else person(subject).sessions
    files = [Expected(mindeye2.train_tar(subject, session), train) for session in range(sessions)]
    return [*files, Expected(mindeye2.test_tar(subject), test)]


# ---- what is there ---------------------------------------------------------------------------------------------------


def _look(cfg: Config, entry: Expected, root: Path | None, measured: bool) -> RawFile:
    entry = entry if measured else replace(entry, n_bytes=0, least=0)  # sizes are those of the releases
    try:
        path = entry.found(root) if root else None
        if root is None or path is None:
            return RawFile(entry)
        size = path.stat().st_size
    except OSError as error:
        return RawFile(entry, Path(entry.path), fault=f"it cannot be looked at: {error.strerror or error}")
    least, unpacked = entry.least, 0
    if measured and SESSION in entry.path:
        x, y, z = person(cfg.subject.name).grid
        values = 2 * x * y * z * TRIALS_PER_SESSION  # int16
        least, unpacked = values if path.suffix == ".hdf5" else 0, NIFTI_HEADER + values
    return RawFile(entry, path, size, fault(path, least, unpacked) or _content_fault(cfg, entry, root, path))


def _content_fault(cfg: Config, entry: Expected, root: Path, path: Path) -> str:
    """What the readers say of the few files that everything else hangs on and that are quick to open."""
    data, subject = cfg.data, cfg.subject.name
    readers: dict[str, Callable[[], object]] = {mindeye2.betas_file(subject): lambda: open_betas(root, subject)}
    if data.source == "nsd":
        readers = {
            nsd.DESIGN: lambda: read_trials(root, subject, data.sessions),
            nsd.roi_path(subject, data.mask): lambda: read_mask(root, subject, data.mask),
        }
    try:
        readers.get(entry.path, lambda: None)()
    except UserError as error:
        return str(error).removeprefix(f"{path} ")
    return ""


def _other_problems(cfg: Config, root: Path | None, absent: Collection[str]) -> list[str]:
    """A split that asks for sessions the subject will not have; a mask or captions of one's own that are not there."""
    data, subject, problems = cfg.data, cfg.subject.name, []
    planned = person(subject).sessions
    if root:
        planned = scanned(root, subject) if data.source == "nsd" else n_sessions(root, subject)
    wanted = planned if data.split == "nsd1000" else SESSIONS_OF.get(data.split, 0)
    asked = data.sessions if data.source == "nsd" else 0
    had = asked or planned
    if had < wanted:
        limit = f"data.sessions={asked}, " if asked else ""
        problems.append(
            f"split {data.split} needs {wanted} sessions of {subject}, but {had} will be prepared ({limit}scanned in "
            f"{planned}). Choose another subject or split{', or more data.sessions' if asked else ''}."
        )
    if data.source == "nsd" and nsd.own_mask(data.mask) and not located(data.mask).is_file():
        problems.append(f"data.mask={data.mask} does not exist.")
    if data.captions and STIMULI in absent:
        try:
            captions.files_of(located(data.captions))
        except UserError as error:
            problems.append(f"data.captions: {error}")
    return problems
