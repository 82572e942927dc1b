"""``nd prepare``: write a data set in the prepared format.

Scenes and digits69 are written with all their subjects. Of NSD (``data=nsd``, ``data=mindeye2``) and of own data the
subject ``subject.name`` is written, and the stimuli once; further subjects join the same folder. What is there is kept,
an interrupted command goes on where it stopped.

With ``layout=nsd`` or ``layout=mindeye2`` a Scenes subject is written as a small tree in the files and codes of that
release instead, to try its reader without the data.
"""

from __future__ import annotations

import time
from pathlib import Path

from nd.config import Config
from nd.config.application import verb
from nd.config.components import component
from nd.data.pieces import Piece, folder_megabytes, make_pieces
from nd.data.prepared import data_folder
from nd.errors import UserError


def prepare(cfg: Config) -> Path:
    """Write what is missing of ``<paths.data>/<data.name>`` and return it. UserError where that fails."""
    from nd.machine import versions
    from nd.runs.manifest import git_state

    if cfg.layout != "prepared":
        return write_layout(cfg)
    start, folder = time.monotonic(), data_folder(cfg)
    made = {"git": git_state(), "packages": versions(), "overrides": cfg.overrides}
    record = {"simulated": cfg.data.simulated, "transductive": cfg.data.transductive, **made}
    try:
        written = make_pieces(folder, pieces_of(cfg), record)
    except UserError as error:
        if note := looks_elsewhere(cfg):
            raise UserError(f"{error} {note}") from None
        raise
    size = f"{folder_megabytes(folder):.1f} MB"
    if written:
        seconds = time.monotonic() - start
        print(f"wrote {cfg.data.name}: {described(written)}, {size} at {folder}, in {seconds:.0f} s")
    else:
        print(f"{cfg.data.name} is already prepared at {folder} ({size}); nothing to do{still_linked(cfg, folder)}")
    return folder


def still_linked(cfg: Config, folder: Path) -> str:
    """Say how files that were prepared as links become copies, where copies were asked for."""
    from nd.data.links import links_of
    from nd.hdf5 import open_h5

    linked = []
    for path in sorted(folder.glob("*.h5")) if not getattr(cfg.data, "in_place", True) else []:
        with open_h5(path) as handle:
            linked += [path.name] if links_of(path, handle) else []
    if not linked:
        return ""
    return f". {', '.join(linked)} still read the release where it lies: remove them and prepare again to have copies"


def looks_elsewhere(cfg: Config) -> str:
    """Say that a debug preset does not see what was prepared without it; empty where it is none or has data."""
    if cfg.debug.name == "off" or data_folder(cfg).is_dir() or cfg.data.source == "scenes":
        return ""
    preset = f"debug={cfg.debug.name}"
    return (
        f"Note that {preset} reads and writes below {cfg.paths.root}/ and sees nothing that was prepared without it: "
        f"{data_folder(cfg)} does not exist. Give with it what `nd prepare` was given, which makes a copy there, or "
        f"leave {preset} out."
    )


def described(names: list[str]) -> str:
    """``4 subjects and the stimuli``."""
    n_people = sum(name.endswith(".h5") and name != "stimuli.h5" for name in names)
    people = [f"{n_people} subject" + "s" * (n_people > 1)] if n_people else []
    return " and ".join(people + ["the stimuli"] * ("stimuli.h5" in names))


def pieces_of(cfg: Config) -> list[Piece]:
    """Return the files that the configuration asks for, by the reader of its source."""
    pieces: list[Piece] = component("source", cfg.data.source).pieces(cfg)
    return pieces


def write_layout(cfg: Config) -> Path:
    """Write one Scenes subject as a tree of a public release, beside the prepared data; returns its folder."""
    from nd.scenes.as_release import write_release

    start = time.monotonic()
    folder, written = write_release(cfg)
    if written:
        print(
            f"wrote {cfg.subject.name} of {cfg.data.name} (simulated) as a tree of {cfg.layout} at {folder}, "
            f"in {time.monotonic() - start:.0f} s"
        )
    else:
        print(f"{folder} is already there; nothing to do")
    return folder


main = verb(prepare)

if __name__ == "__main__":
    main()
