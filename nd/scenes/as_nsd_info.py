"""What NSD says of its images: nsd_stim_info_merged.csv, and captions in the form of COCO's annotations.

Shapes: T trials, I images of a subject's list, N = 73,000 images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.data.nsd.facts import N_IMAGES
from nd.data.nsd.tree import COCO_CAPTIONS, STIM_INFO, SUBJECTS
from nd.data.stimuli import Stimuli
from nd.data.subject_file import repeats_of
from nd.files import write_json, write_text

MAX_COCO_ID = 600_000  # COCO 2017 numbers its images up to 581,929
SPLITS = ("train2017", "val2017")
REPEATS = 3  # columns subjectN_rep0 to _rep2


def invented_coco_ids() -> NDArray[np.int64]:
    """(N,) COCO id of every 73k image, all different."""
    return np.random.default_rng(N_IMAGES).permutation(np.arange(1, MAX_COCO_ID))[:N_IMAGES]


def split_of_images() -> NDArray[np.intp]:
    """(N,) index into SPLITS: every fifth image comes from the smaller of COCO's two sets."""
    return (np.arange(N_IMAGES) % 5 == 3).astype(np.intp)


def write_info(
    root: Path,
    lists: NDArray[np.integer],
    order: NDArray[np.integer],
    shared: NDArray[np.integer],
    coco: NDArray[np.int64],
) -> None:
    """Write nsd_stim_info_merged.csv: one row per 73k image, as NSD's columns.

    Args: ``lists`` (8, I) and ``shared`` 1-based 73k ids; ``order`` (T,) 1-based positions in the lists; ``coco`` (N,).
    """
    shown = trials_by_position(order, lists.shape[1])
    seen = np.zeros((len(SUBJECTS), N_IMAGES), np.int64)
    repeats = np.zeros((len(SUBJECTS), N_IMAGES, shown.shape[1]), np.int64)
    for k, images in enumerate(lists - 1):
        seen[k, images], repeats[k, images] = 1, shown
    is_shared = np.isin(np.arange(N_IMAGES), shared - 1).tolist()
    numbers = np.concatenate([seen.T, repeats.transpose(1, 0, 2).reshape(N_IMAGES, -1)], 1)
    names = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    names += [f"subject{k + 1}" for k in range(len(seen))]
    names += [f"subject{k + 1}_rep{r}" for k in range(len(seen)) for r in range(shown.shape[1])]
    ends = [",".join("0" * numbers.shape[1])] * N_IMAGES  # most images are shown to nobody here
    for image in np.flatnonzero(numbers.any(1)):
        ends[image] = ",".join(map(str, numbers[image].tolist()))
    of_image = zip(coco.tolist(), split_of_images(), is_shared, ends, strict=True)
    rows = [
        f'{image},{number},{SPLITS[part]},"(0, 0, 0, 0)",0.0,{image},False,False,{is_one},{end}'
        for image, (number, part, is_one, end) in enumerate(of_image)
    ]
    write_text(root / STIM_INFO, "\n".join([",".join(["", *names]), *rows, ""]))


def trials_by_position(order: NDArray[np.integer], n_images: int) -> NDArray[np.int64]:
    """(I, R) 1-based trials at which each position of an image list is shown, 0 where there are fewer; R >= 3."""
    repeat = repeats_of(order)
    out = np.zeros((n_images, max(REPEATS, int(repeat.max()) + 1)), np.int64)
    out[order - 1, repeat] = np.arange(1, len(order) + 1)
    return out


def write_captions(root: Path, stimuli: Stimuli, coco: NDArray[np.int64]) -> None:
    """Write the captions of the images as COCO's two annotation files, each image's in the file of its set.

    The first captions of all images come first, then the second ones: an image's captions do not stand together in
    COCO's files either, but their order is kept.
    """
    ids, texts = stimuli.image_id, stimuli.captions(stimuli.image_id)
    part = split_of_images()[ids]
    for k, path in enumerate(COCO_CAPTIONS):
        mine = [(int(coco[i]), captions) for i, captions, p in zip(ids, texts, part, strict=True) if p == k]
        spoken = [
            (image, captions[n])
            for n in range(max((len(c) for _, c in mine), default=0))
            for image, captions in mine
            if n < len(captions)
        ]
        numbers = range(k + 1, len(COCO_CAPTIONS) * len(spoken) + 1, len(COCO_CAPTIONS))  # unique over both files
        notes = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in zip(numbers, spoken, strict=False)]
        side = {"height": stimuli.shape[0], "width": stimuli.shape[1]}
        images = [{"id": i, "file_name": f"{i:012d}.jpg", **side} for i, _ in mine]
        info = {"description": "simulated: captions of drawn images in the form of COCO's annotations"}
        write_json(root / path, {"info": info, "licenses": [], "images": images, "annotations": notes})
