"""Fill a target store: batch by batch, flushed, resumable; the final name appears only when every image is there.

The unfinished file lies beside the final one as `<name>.partial`. Its datasets are laid out in full at the start, so a
killed process never leaves a broken HDF5 structure behind, only rows that are not yet marked as done.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.prepared import Stimuli
from nd.errors import UserError
from nd.files import allocate
from nd.targets.base import Extractor, Items
from nd.targets.store import TargetStore, store_fingerprint

log = logging.getLogger(__name__)

CHECK_ROWS = 256  # rows compared at a time when a finished store is checked


def extract_to_store(
    extractor: Extractor,
    stimuli: Stimuli,
    path: Path,
    *,
    dtype: str = "float32",
    batch_size: int = 64,
    progress: bool = True,
) -> int:
    """Compute what is missing of a target's features and leave a finished store at `path`.

    Args:
        extractor: the target.
        stimuli: all pictures (or captions) of the data set.
        path: final file; existing and finished means nothing to do.
        dtype: storage type, 'float16' or 'float32'.
        batch_size: pictures per step.
        progress: show a bar with rate and time left.

    Returns:
        Number of images computed now.

    Raises:
        UserError: features that are not finite or do not vary, a full disk, another process writing the same store,
            or a file that belongs to other settings.
    """
    fingerprint = store_fingerprint(extractor, stimuli.hash, dtype)
    if path.exists():
        _verify(path, fingerprint)
        return 0
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _open_partial(partial, extractor, stimuli, dtype, fingerprint) as handle:
            computed = _fill(handle, extractor, stimuli, batch_size, progress)
            _check_variation(handle["features"], extractor, partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {partial}: {error.strerror or error}. Free some space or choose another paths.cache; "
            "what is finished is kept."
        ) from error
    return computed


def _verify(path: Path, fingerprint: str) -> None:
    found = TargetStore(path).fingerprint
    if found != fingerprint:
        raise UserError(
            f"{path} holds features with fingerprint {found}, but the present settings ask for {fingerprint}. "
            "Remove the file and run `nd extract` again."
        )


def _open_partial(path: Path, extractor: Extractor, stimuli: Stimuli, dtype: str, fingerprint: str) -> h5py.File:
    """The unfinished file, open for writing: the one left by an interrupted run, or a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            handle = h5py.File(path, "r+")
            if handle.attrs.get("fingerprint") == fingerprint and "done" in handle:
                return handle
            handle.close()
        except BlockingIOError:
            raise UserError(f"another process is writing {path}. Wait for it, or stop it and run again.") from None
        except OSError:
            log.warning("%s was left unreadable by an interrupted run; starting it again", path)
        path.unlink()
    _check_space(path, extractor, stimuli, dtype)
    return _create(path, extractor, stimuli, dtype, fingerprint)


def _check_space(path: Path, extractor: Extractor, stimuli: Stimuli, dtype: str) -> None:
    needed = len(stimuli.image_id) * int(np.prod(extractor.shape)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"target {extractor.name!r} needs {needed / 1e9:.2f} GB at {path.parent}, but only {free / 1e9:.2f} GB are "
            "free. Free some space, choose another paths.cache, or store halves with target.dtype=float16."
        )


def _create(path: Path, extractor: Extractor, stimuli: Stimuli, dtype: str, fingerprint: str) -> h5py.File:
    handle = h5py.File(path, "w")
    n_images = len(stimuli.image_id)
    shape = tuple(int(side) for side in extractor.shape)
    allocate(handle, "features", (n_images, int(np.prod(shape))), np.dtype(dtype))
    allocate(handle, "done", (n_images,), np.dtype(np.uint8))
    handle["done"][:] = 0
    handle.create_dataset("image_id", data=stimuli.image_id)
    details = json.dumps({**extractor.fingerprint(), "stimuli": stimuli.hash, "dtype": dtype}, sort_keys=True)
    handle.attrs.update(
        {"target": extractor.name, "shape": json.dumps(shape), "fingerprint": fingerprint, "details": details}
    )
    handle.flush()
    return handle


def _fill(handle: h5py.File, extractor: Extractor, stimuli: Stimuli, batch_size: int, progress: bool) -> int:
    missing = np.flatnonzero(handle["done"][()] == 0)
    n_done = len(stimuli.image_id) - len(missing)
    bar = tqdm(
        total=len(stimuli.image_id),
        initial=n_done,
        unit="image",
        desc=f"extract {extractor.name}",
        disable=not progress,
    )
    with bar:
        for rows in np.array_split(missing, range(batch_size, len(missing), batch_size)):
            if len(rows):
                handle["features"][rows] = _compute(extractor, stimuli, rows, handle["features"].dtype)
                handle.flush()
                handle["done"][rows] = 1  # only after its features are written
                handle.flush()
                bar.update(len(rows))
    return len(missing)


def _compute(
    extractor: Extractor, stimuli: Stimuli, rows: NDArray[np.intp], dtype: np.dtype[Any]
) -> NDArray[np.floating[Any]]:
    """Features (n, P) of some images, in the storage type; checked for being finite."""
    ids = stimuli.image_id[rows]
    features = extractor(Items.read(stimuli, ids, {extractor.needs})).reshape(len(rows), -1)
    with np.errstate(over="ignore"):  # overflow of float16 is reported below
        stored = features.astype(dtype)
    bad = ~np.isfinite(stored).all(axis=1)
    if bad.any():
        image = ids[int(bad.argmax())]
        reason = "are not finite" if not np.isfinite(features).all() else "overflow target.dtype=float16; use float32"
        raise UserError(f"the features {extractor.name!r} of image {image} {reason}. Are the weights whole?")
    return stored


def _check_variation(features: h5py.Dataset, extractor: Extractor, partial: Path) -> None:
    """Refuse features that are the same for every image: broken weights, or captions that say nothing."""
    first, n_images = features[0], len(features)
    starts = range(0, n_images, CHECK_ROWS)
    if n_images < 2 or any((features[start : start + CHECK_ROWS] != first).any() for start in starts):
        return
    partial.unlink()
    raise UserError(
        f"the features {extractor.name!r} are the same for all {n_images} images; nothing can be decoded from them. "
        "Are the weights (backbone.weights, backbone.image_tower) trained and whole?"
    )
