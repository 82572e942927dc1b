"""`nd doctor deep=true`: every file that was recorded when it was written, read through and compared.

Prepared data, target stores, features of the stimuli, and the files of all finished runs. What only doubles a check
that verbs make of what they read costs them little; this reads everything once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nd.config import Config
from nd.data.piece_records import MANIFEST, manifest_of
from nd.data.prepared import Stimuli, Subject, data_folder, stimuli_path
from nd.doctor.need import byte_text
from nd.errors import UserError
from nd.files import sha256_file
from nd.h5_values import check_all
from nd.runs.catalogue import known_runs
from nd.runs.outputs import output_of, recorded_outputs

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Compared:
    """What was compared: how many files of how many bytes, and what is wrong with those that are not as written."""

    n_files: int
    n_bytes: int
    problems: list[str]

    def lines(self) -> Iterator[str]:
        """Say it."""
        whole = f"{self.n_files} files ({byte_text(self.n_bytes)}) compared with what was recorded of them"
        yield f"{whole}: {f'{len(self.problems)} are not as written' if self.problems else 'all are as written'}"
        yield from self.problems


def compare(cfg: Config) -> Compared:
    """Read everything below ``paths.data``, ``paths.cache`` and ``paths.runs`` that can be compared."""
    checks, problems, n_bytes = list(_checks(cfg)), [], 0
    for path, check in tqdm(checks, desc="compare files", unit="file", disable=not cfg.trainer.progress):
        try:
            n_bytes += path.stat().st_size if path.is_file() else 0
            check()
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}.")
    return Compared(len(checks), n_bytes, problems)


def _checks(cfg: Config) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Every file with what compares it."""
    yield from _prepared(cfg)
    cache = Path(cfg.paths.cache)
    for path in sorted([*cache.glob("targets/[!.]*.h5"), *cache.glob("stimulus_features/[!.]*.h5")]):
        yield path, partial(check_all, path)
    for run in known_runs(Path(cfg.paths.runs)):
        if run.state == "damaged":
            yield run.path, partial(lambda one: one.folder.manifest, run)
        for name in recorded_outputs(run.path) if run.state == "done" else ():
            path = run.path / name
            if path.exists():
                yield path, partial(_output, run.path, name)


def _output(folder: Path, name: str) -> None:
    path = output_of(folder, name)
    if path.suffix == ".h5":
        check_all(path)


def _prepared(cfg: Config) -> Iterator[tuple[Path, Callable[[], object]]]:
    folder = data_folder(cfg)
    if not (folder / MANIFEST).exists():
        return
    yield folder / MANIFEST, partial(manifest_of, folder)
    try:
        pieces = manifest_of(folder)["files"]
    except UserError:
        return
    for name, entry in pieces.items():
        path = folder / name
        if not path.exists():
            continue
        if path == stimuli_path(cfg):
            yield path, partial(_stimuli, path)
        elif path.suffix == ".h5":
            yield path, partial(_subject, path)
        else:
            yield path, partial(_same, path, entry["sha256"])


def _stimuli(path: Path) -> None:
    stimuli = Stimuli(path)
    for start in range(0, len(stimuli.image_id), IMAGES_AT_ONCE):
        stimuli.images(stimuli.image_id[start : start + IMAGES_AT_ONCE])
    check_all(path, rows=False)


def _subject(path: Path) -> None:
    subject = Subject(path)
    for _ in subject.blocks(np.arange(len(subject.image_id))):
        pass
    check_all(path, rows=False)


def _same(path: Path, recorded: str) -> None:
    if sha256_file(path) != recorded:
        raise UserError(f"{path} changed since `nd prepare` wrote it. Remove it and run `nd prepare` again.")
