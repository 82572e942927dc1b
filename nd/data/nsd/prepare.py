"""NSD's own files to the prepared format: one subject, session by session, in the memory of about one session.

The subject's file is laid out in full at the start. A session whose betas are in it is marked as done with the size of
the file they came from; an interrupted preparation goes on with the first session that is not marked, or whose file
has another size by now. Where design, mask or ROIs are others by then, it starts again.
Shapes: T trials, V voxels, S sessions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from nd.config import Config, DataConfig
from nd.data.captions import captions_for, files_if_there
from nd.data.linked_stimuli import open_images, write_linked_stimuli
from nd.data.nsd import tree
from nd.data.nsd.betas import RULES, check_session, read_session, scale_session, session_files
from nd.data.nsd.design import Trials, check_usable, read_coco_ids, read_trials
from nd.data.nsd.volumes import Mask, on_grid, read_mask, read_rois
from nd.data.own_images import hash_of
from nd.data.pieces import Piece, Settings
from nd.data.subject_file import AGAIN, TRIAL_COLUMNS, SubjectTable, lay_out, write_rows
from nd.digests import digest_rows
from nd.errors import UserError
from nd.files import located, sha256_json
from nd.hdf5 import allocate, attributes_of, bad_h5
from nd.sealed import ROWS, seal

LOG = logging.getLogger(__name__)


def pieces_of(cfg: Config) -> list[Piece]:
    """The stimuli of ``data.subjects`` and the voxels of ``subject.name``.

    Without ``data.root`` they are only compared with what is prepared already. Files of NSD are taken to be NSD's; a
    mask and captions of one's own may be written again, so their hash is among the settings.
    """
    data, subject = cfg.data, cfg.subject.name
    stimuli = {"source": "nsd", "subjects": list(data.subjects), "image_size": data.image_size, **_own_captions(data)}
    rule = {name: getattr(data, name) for name in ("betas", "mask", "scaling", "constant_voxels", "sessions")}
    voxels = {"source": "nsd", "subject": subject, **rule, **_own_mask(data)}
    places = {"images": located(data.root) / tree.STIMULI} if data.root else {}
    return [
        Piece("stimuli.h5", stimuli, partial(_write_stimuli, data, cfg.trainer.progress), links=places),
        Piece(f"{subject}.h5", voxels, partial(_write_subject, data, subject, voxels), resumable=True),
    ]


def _own_mask(data: DataConfig) -> Settings:
    """Hash of a mask that is no volume of NSD's; empty where it is not there."""
    path = located(data.mask)
    return {"mask_sha256": hash_of(path) if path.is_file() else ""} if tree.own_mask(data.mask) else {}


def _own_captions(data: DataConfig) -> Settings:
    """Hash of captions that are given, empty where there are none; nothing where those of ``data.root`` are read."""
    source = located(data.captions)
    if not data.captions or (data.root and source == _captions(data.root)):
        return {}
    files = files_if_there(source)
    return {"captions": sha256_json([[path.name, hash_of(path)] for path in files]) if files else ""}


def _captions(root: str | Path) -> Path:
    """The folder of COCO's captions below a root."""
    return located(root) / "annotations"


# ---- images --------------------------------------------------------------------------------------------------------


def _write_stimuli(data: DataConfig, progress: bool, path: Path) -> None:
    """Link (or copy) the images that the subjects saw, with their captions."""
    root = _root(data)
    trials = [read_trials(root, name) for name in data.subjects]
    image_id = np.unique(np.concatenate([one.image_id for one in trials]))
    shared = np.unique(np.concatenate([one.image_id[one.shared] for one in trials]))
    coco_id = read_coco_ids(root, image_id, shared)
    captions = captions_for(located(data.captions or _captions(root)), image_id.tolist(), coco_id.tolist())
    file = root / tree.STIMULI
    side = open_images(file, tree.STIMULI_KEY).shape[0]
    if side != data.image_size:
        raise UserError(
            f"{file} holds images of {side} pixels, but data.image_size={data.image_size}. Set data.image_size={side}."
        )
    write_linked_stimuli(
        path,
        file=file,
        key=tree.STIMULI_KEY,
        image_id=image_id,
        rows=image_id,
        captions=captions,
        in_place=data.in_place,
        progress=progress,
    )


def _root(data: DataConfig) -> Path:
    root = tree.check_root(data.root, data.source)
    tree.check_simulated(root, data.simulated)
    return root


# ---- voxels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a subject before its betas are read."""

    trials: Trials
    mask: Mask
    files: list[Path]
    table: SubjectTable


def _write_subject(data: DataConfig, subject: str, settings: Settings, path: Path) -> None:
    """Fill the subject's file at ``path``, going on from what is there."""
    plan = _plan(data, subject)
    check_usable(data, subject, plan.trials, path.parent / "stimuli.h5")
    with _opened(path, subject, plan, settings) as handle:
        done, sizes = handle["source_bytes"], [file.stat().st_size for file in plan.files]
        left = [k for k, size in enumerate(sizes) if done[k] != size or not _is_whole(plan, k, handle)]
        if len(left) < len(plan.files):
            LOG.info("%d of %d sessions of %s are there already", len(plan.files) - len(left), len(plan.files), subject)
        for k in tqdm(left, desc=f"prepare {subject}", unit="session", disable=None):
            _write_session(data, plan, k, handle)
        seal(handle, AGAIN)


def _is_whole(plan: Plan, k: int, handle: h5py.File) -> bool:
    """Whether the betas of a session are still those that were written there."""
    rows = np.flatnonzero(plan.trials.session == k)
    where = slice(rows[0], rows[-1] + 1)
    return bool((digest_rows(handle["voxels"][where]) == handle[f"{ROWS}/voxels"][where]).all())


def _plan(data: DataConfig, subject: str) -> Plan:
    """Read all but the betas, and the headers of all betas: what is wrong is known before anything is written."""
    root = _root(data)
    trials = read_trials(root, subject, data.sessions)
    mask = read_mask(root, subject, data.mask)
    files = session_files(root, subject, data.betas, len(trials.per_session))
    for file, n_trials in zip(files, trials.per_session, strict=True):
        check_session(file, mask, int(n_trials))
    noise = root / tree.betas_folder(subject, data.betas) / "ncsnr.nii.gz"
    table = SubjectTable(
        image_id=trials.image_id,
        session=trials.session,
        repeat=trials.repeat,
        trial=np.arange(len(trials.image_id)),
        held_out=trials.shared,
        ijk=mask.ijk,
        rois=read_rois(root, subject, mask),
        ncsnr=np.nan_to_num(mask.take(on_grid(noise, mask))).astype(np.float32) if noise.is_file() else None,
        attributes={
            "name": subject,
            "source": "nsd",
            "simulated": data.simulated,
            "mask": data.mask,
            "betas": data.betas,
            "scaling": RULES[data.scaling],
            "transductive": data.scaling == "session",
            "sessions_scanned": trials.planned,
        },
    )
    return Plan(trials, mask, files, table)


def _opened(path: Path, subject: str, plan: Plan, settings: Settings) -> h5py.File:
    """The hidden file, open for writing: what an interrupted attempt with the same settings left, or a new one."""
    wanted = json.dumps(settings, sort_keys=True)
    if path.exists():
        try:
            handle = h5py.File(path, "r+")
            if attributes_of(handle).get("settings") == wanted and _is_laid_out(handle, plan):
                return handle
            handle.close()
            LOG.warning("%s was begun from another design, mask or ROIs, or settings; starting it again", path)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise bad_h5(path, error) from None
            LOG.warning("%s was left unreadable by an interrupted attempt; starting it again", path)
        path.unlink()
    handle = h5py.File(path, "w")
    try:
        lay_out(handle, subject, plan.table)
        allocate(handle, "source_bytes", (len(plan.files),), np.dtype(np.int64))[:] = 0
        handle.attrs["settings"] = wanted
        seal(handle, AGAIN)
        handle.flush()
    except BaseException:
        handle.close()
        path.unlink(missing_ok=True)  # nothing worth resuming
        raise
    return handle


def _is_laid_out(handle: h5py.File, plan: Plan) -> bool:
    """Whether a file that was begun has the trials, voxels and ROIs of the files that are there now."""
    columns = {name: getattr(plan.table, name) for name in (*TRIAL_COLUMNS, "held_out", "ijk", "ncsnr")}
    columns |= {f"rois/{name}": mask for name, mask in plan.table.rois.items()}
    there = {name for name in columns if name in handle} | {f"rois/{name}" for name in handle.get("rois", ())}
    return (
        "source_bytes" in handle
        and there == {name for name, values in columns.items() if values is not None}
        and all(np.array_equal(handle[name][()], columns[name]) for name in there)
    )


def _write_session(data: DataConfig, plan: Plan, k: int, handle: h5py.File) -> None:
    """Read, scale and store session ``k``, and mark it as done."""
    file, rows = plan.files[k], np.flatnonzero(plan.trials.session == k)
    betas = read_session(file, plan.mask)
    scaled = scale_session(betas, plan.trials.shared[rows], data.scaling, data.constant_voxels, _where(file, plan.mask))
    write_rows(handle, int(rows[0]), scaled)
    handle.flush()
    handle["source_bytes"][k] = file.stat().st_size  # only after its betas are written
    handle.flush()


def _where(file: Path, mask: Mask) -> Any:
    """Names a voxel of a file, for messages."""
    return lambda voxel: f"{file}: voxel {tuple(int(i) for i in mask.ijk[voxel])}"
