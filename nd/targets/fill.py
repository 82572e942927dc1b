"""Fill target stores: all wanted targets in one pass over the stimuli, batch by batch, resumable.

Every image is read once for all stores that lack it, and targets of one batch share the forward passes they have in
common. A store that has an image already is not computed for it again, whatever the others lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.image_checks import check_images
from nd.data.prepared import Stimuli
from nd.errors import UserError
from nd.files import atomic_path
from nd.locks import locked
from nd.targets.base import Items
from nd.targets.reference import N_REFERENCE, check_drift, reference_features
from nd.targets.store import TargetStore, differences
from nd.targets.unfinished import Job, Unfinished

ADVICE = "Free some space or choose another paths.cache; what is finished is kept."
CPU_PIXELS = 1 << 20  # four images of Stable Diffusion's 512 px, each 10 s of its VAE on two cores


def extract_to_stores(
    jobs: Sequence[Job], stimuli: Stimuli, *, batch_size: int = 64, progress: bool = True
) -> dict[str, int]:
    """Compute what is missing of several targets and leave a finished store for each.

    Args:
        jobs: the wanted stores; finished ones are passed over.
        stimuli: all images and captions of the data set.
        batch_size: images per step.
        progress: show a bar with rate and time left.

    Returns:
        Number of images computed now, by target.

    Raises:
        UserError: images that are saturated, features that are not finite or do not vary, a full disk, another
            process writing the same store, or a file that belongs to other settings.
    """
    wanted = [job for job in jobs if not is_finished(job, stimuli)]
    computed = {job.extractor.name: 0 for job in jobs}
    with ExitStack() as stack:
        names, n_images = ", ".join(job.extractor.name for job in wanted), len(stimuli.image_id)
        quiet = not progress or not wanted
        # It says what is being computed, too: at full size a batch of one target takes minutes.
        bar = stack.enter_context(tqdm(total=n_images, unit="image", desc=f"extract {names}", disable=quiet))
        stores: list[Unfinished] = []
        for job in wanted:
            stack.enter_context(locked(job.path.with_name(f".{job.path.name}.lock"), str(job.path)))
            if is_finished(job, stimuli):  # by another process, meanwhile
                continue
            partial = stack.enter_context(atomic_path(job.path, alone=True, resume=True, advice=ADVICE))
            bar.set_postfix_str(f"{job.extractor.name} of {N_REFERENCE} reference images")
            store = Unfinished(job, stimuli, partial)
            stack.callback(store.close)
            stores.append(store)
            computed[job.extractor.name] = len(store.left)
        _fill(stores, stimuli, batch_size, bar)
        for store in stores:
            bar.set_postfix_str(f"{store.job.extractor.name} is checked")
            store.finish()
    return computed


def is_finished(job: Job, stimuli: Stimuli) -> bool:
    """Whether the job's store is there. One of other settings, weights or stimuli is a UserError that names them."""
    if not job.path.exists():
        return False
    changed = differences(TargetStore(job.path).details, job.details(stimuli))
    if changed:
        raise UserError(
            f"{job.path} was made otherwise than the present settings ask for:\n  - " + "\n  - ".join(changed) + "\n"
            "Go back to the former ones, or remove the file and run `nd extract` again."
        )
    return True


def check_store(job: Job, stimuli: Stimuli) -> None:
    """Compute the reference images anew and compare them with those of a finished store: drift is a UserError."""
    store = TargetStore(job.path)
    now_4P = reference_features(job.extractor, stimuli.shape[0])
    check_drift(str(job.path), store.reference, now_4P, job.precision, store.versions)


def images_at_once(batch_size: int, side: int, device_type: str) -> int:
    """Return how many images to go through the networks with before they are stored and the bar moves.

    On a CPU a batch of ``CPU_PIXELS`` costs a minute or so, and a larger one gains nothing.

    Args:
        batch_size: the most that is wanted.
        side: of the images as the networks see them, in pixels.
        device_type: 'cpu', 'cuda', 'mps'.

    >>> images_at_once(80, 512, "cpu"), images_at_once(80, 64, "cpu"), images_at_once(80, 512, "cuda")
    (4, 80, 80)
    """
    return max(1, min(batch_size, CPU_PIXELS // side**2)) if device_type == "cpu" else batch_size


def _fill(stores: Sequence[Unfinished], stimuli: Stimuli, batch_size: int, bar: tqdm) -> None:
    """Go through the stimuli once, in the order of the file."""
    n_left = len(np.unique(np.concatenate([store.left for store in stores]))) if stores else 0
    n_images = len(stimuli.image_id)
    bar.reset()  # the clock starts, at the images that an interrupted run has left
    bar.initial = bar.n = n_images - n_left
    for lacking, rows in _batches(stores, n_images, batch_size):
        ids = stimuli.image_id[rows]
        bar.set_postfix_str("images are read")
        items = Items.read(stimuli, ids, {store.job.extractor.needs for store in lacking})
        if len(items.images):
            check_images(items.images, ids)
        for store in lacking:
            bar.set_postfix_str(store.job.extractor.name)
            store.write(rows, ids, store.job.extractor(items))
        bar.update(len(rows))


def _batches(
    stores: Sequence[Unfinished], n_images: int, batch_size: int
) -> Iterator[tuple[list[Unfinished], NDArray[np.intp]]]:
    """Rows that lack the same stores, at most ``batch_size`` at a time."""
    lacks_SN = np.zeros((len(stores), n_images), bool)
    for k, store in enumerate(stores):
        lacks_SN[k, store.left] = True
    for pattern in np.unique(lacks_SN.T, axis=0):
        rows = np.flatnonzero((pattern == lacks_SN.T).all(axis=1)) if pattern.any() else np.array([], np.intp)
        lacking = [store for store, lacks in zip(stores, pattern, strict=True) if lacks]
        for start in range(0, len(rows), batch_size):
            yield lacking, rows[start : start + batch_size]
