"""The files of own data: which are given, and whether they fit each other as far as that is quick to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from nd.config import Config, DataConfig
from nd.data.captions import files_of
from nd.data.own import EXAMPLE, STIMULI, TRIAL_FILES
from nd.data.own_images import open_images
from nd.data.own_trials import OwnTrials
from nd.data.splits import subject_split
from nd.data.stimuli import Stimuli
from nd.doctor.need import Need, size_text
from nd.errors import UserError
from nd.files import located

WANTED = {
    "voxels": "responses (trials, voxels), .npy",
    "image_ids": "the image of every trial, .npy or one number a line",
    "images": "a folder of images named by image id, or .npy",
}


def own_needs(cfg: Config, absent: Collection[str], stimuli: Path) -> Iterator[Need]:
    """The files behind the prepared pieces that are ``absent``; ``stimuli`` is the prepared file.

    That given paths exist has been checked with the configuration.
    """
    needed = {"voxels": cfg.subject.name, "image_ids": cfg.subject.name, "images": STIMULI.removesuffix(".h5")}
    lacking = [key for key, piece in needed.items() if f"{piece}.h5" in absent and not getattr(cfg.data, key)]
    for key in (*WANTED, "session_ids", "test_ids", "captions", "volume", "roi_volumes", "rois"):
        given = getattr(cfg.data, key)
        if given:
            yield Need(f"data.{key}", "ok", given, size_text(located(given)))
        elif key in lacking:
            yield Need(f"data.{key}", "missing", "not given", WANTED[key])
    if lacking:
        yield Need("", "hint", EXAMPLE, "data.name=<name of your data set>, subject.name=<person>")
        return
    for problem in _problems(cfg.data, absent, stimuli):
        yield Need("own data", "wrong", "of no use as they are", problem)


def _problems(data: DataConfig, absent: Collection[str], stimuli: Path) -> Iterator[str]:
    """What the readers say, without reading voxels or images."""
    paths = {key: located(given) for key in TRIAL_FILES if (given := getattr(data, key))}
    trials = OwnTrials(paths, data.n_test)

    def check_images() -> None:
        if STIMULI in absent:
            images = open_images(located(data.images))
            ids, where = images.ids, f"{images.source}. {images.said_of_names()}"
        else:
            ids, where = Stimuli(stimuli).image_id, f"{stimuli}."
        if "image_ids" in paths:
            trials.check_images(ids, where)

    checks: list[Callable[[], object]] = [check_images]
    if data.captions:
        checks.append(lambda: files_of(located(data.captions)))
    if "voxels" in paths and "image_ids" in paths:
        checks = [lambda: trials.voxels, lambda: trials.image_id, lambda: trials.held_out, *checks]
        checks.append(lambda: subject_split(data, trials.image_id, trials.held_out))
        checks += [lambda: trials.session] if "session_ids" in paths else []
    for check in checks:
        try:
            check()
        except UserError as error:
            yield str(error)
            return
