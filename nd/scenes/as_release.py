"""One simulated subject of Scenes as a small tree of a public release, beside the prepared data.

The tree is built in a hidden folder and takes its name in one rename, so it is whole or absent. ``simulated.json`` in
it says what it was made with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nd.config import Config
from nd.data.nsd.facts import number
from nd.data.pieces import ADVICE, is_prepared
from nd.data.prepared import data_folder, subject_path
from nd.data.stimuli import Stimuli
from nd.data.subject import Subject
from nd.errors import UserError, unknown
from nd.files import partial_path, read_json, system_errors, write_json
from nd.locks import locked
from nd.scenes.as_mindeye2 import write_mindeye2
from nd.scenes.as_nsd import write_nsd
from nd.scenes.world import pieces_of

RECORD = "simulated.json"
LAYOUTS = ("nsd", "mindeye2")
TREE_VERSION = 1  # raise it when the same settings give other files


def write_release(cfg: Config) -> tuple[Path, bool]:
    """Write ``subject.name`` of Scenes as the tree ``layout`` names; return its folder and whether it was written now.

    The prepared data are used where they are there and made for the moment where not. Raises UserError where the
    configuration makes no such tree, its folder holds anything else, or it cannot be written.
    """
    settings = settings_of(cfg)
    folder = data_folder(cfg).with_name(f"{cfg.data.name}-{cfg.layout}")
    if _is_there(folder, settings):  # before locking, so that a read-only tree of a colleague can be used
        return folder, False
    with (
        system_errors(folder, ADVICE),
        locked(folder.with_name(f".{folder.name}.lock"), str(folder), wait=True),
    ):
        if _is_there(folder, settings):
            return folder, False
        _build(cfg, folder, settings)
    return folder, True


def settings_of(cfg: Config) -> dict[str, Any]:
    """Everything that the content of the tree depends on. UserError for settings that make none."""
    if cfg.layout not in LAYOUTS:
        raise unknown("layout of a release", cfg.layout, LAYOUTS)
    if cfg.data.source != "scenes":
        raise UserError(f"layout={cfg.layout} writes simulated data: set data=scenes, not data={cfg.data.name}.")
    wanted = subject_path(cfg).name
    number(cfg.subject.name)
    experiment = next(piece.settings for piece in pieces_of(cfg.data) if piece.name == wanted)
    version = {"betas": cfg.data.betas} if cfg.layout == "nsd" else {}
    return {**experiment, **version, "subject": cfg.subject.name, "layout": cfg.layout, "tree": TREE_VERSION}


def _is_there(folder: Path, settings: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} exists but holds no {RECORD}, so `nd prepare` did not write it. Move it away, or set paths.data "
            "to another folder."
        )
    made = read_json(folder / RECORD)
    differing = [
        f"{name}: made with {made.get(name)}, asked for {settings.get(name)}"
        for name in sorted({*made, *settings})
        if made.get(name) != settings.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder} was written with other settings ({'; '.join(differing)}); a tree holds one subject. Set "
            "paths.data to another folder, or remove that one to write it again."
        )
    return True


def _build(cfg: Config, folder: Path, settings: dict[str, Any]) -> None:
    work = partial_path(folder)
    shutil.rmtree(work, ignore_errors=True)  # what a killed attempt left; the lock says nobody is writing it
    try:
        (work / "source").mkdir(parents=True)
        subject, stimuli = _source(cfg, work / "source")
        test_ids = np.arange(cfg.data.n_train, cfg.data.n_train + cfg.data.n_test)
        if cfg.layout == "nsd":
            write_nsd(work / "tree", subject, stimuli, test_ids, betas=cfg.data.betas)
        else:
            write_mindeye2(work / "tree", [subject], stimuli, test_ids)
        write_json(work / "tree" / RECORD, settings)
        (work / "tree").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _source(cfg: Config, work: Path) -> tuple[Subject, Stimuli]:
    """The prepared subject and stimuli; what is not prepared is made in ``work``."""
    pieces = {piece.name: piece for piece in pieces_of(cfg.data)}
    paths = []
    for name in (subject_path(cfg).name, "stimuli.h5"):
        prepared = is_prepared(data_folder(cfg), pieces[name])
        paths.append((data_folder(cfg) if prepared else work) / name)
        if not prepared:
            pieces[name].write(paths[-1])
    return Subject(paths[0]), Stimuli(paths[1])
