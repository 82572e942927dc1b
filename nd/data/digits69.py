"""Reader of digits69: real fMRI of one person seeing handwritten sixes and nines.

M. van Gerven, F. de Lange, T. Heskes, "Neural decoding with hierarchical generative models", Neural Computation 22
(2010). The file ``digit69_28x28.mat`` lies in the public repository of the DGMM method (C. Du et al.). It holds 90 + 10
trials of different images, 3092 voxels, and pixels stored column by column. It is never shipped with this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import DataConfig
from nd.data import digit_captions
from nd.data.mat import read_mat
from nd.data.pieces import Piece
from nd.data.stimuli import content_hash, write_stimuli
from nd.data.subject_file import write_subject
from nd.data.whole_numbers import whole_numbers
from nd.errors import UserError
from nd.files import sha256_file

N_TRAIN = 90
N_IMAGES = 100
SIDE = 28
DIGITS = (6, 9)
# Both given parts hold their sixes first and then as many nines; the reader checks that the file says the same.
LABELS: NDArray[np.int16] = np.repeat(np.array([6, 9, 6, 9], np.int16), [45, 45, 5, 5])

SOURCE = (
    "It is public: look for digit69_28x28.mat (2.4 MB) in the GitHub repository of the DGMM method (C. Du); "
    "data of van Gerven, de Lange and Heskes, Neural Computation 2010"
)
KEYS = ("fmriTrn", "fmriTest", "stimTrn", "stimTest", "labelTrn", "labelTest")


@dataclass(frozen=True)
class Digits69:
    """The whole data set: images 0-89 are the given training part, 90-99 the given test part.

    voxels (100, V) float32 as released; images (100, 28, 28, 3) uint8, upright, three equal channels; labels (100,)
    int16, 6 or 9; captions, several per image.
    """

    voxels: NDArray[np.float32]
    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    captions: list[list[str]]


def read_digits69(file: str | Path) -> Digits69:
    """Read the .mat file. Raises UserError where it is not given, absent, unreadable or another kind of file."""
    content = _load(file)
    both = {name: np.concatenate([content[f"{name}Trn"], content[f"{name}Test"]]) for name in ("fmri", "stim", "label")}
    labels = np.array([DIGITS[v - 1] for v in _whole(file, both, "label", 1, 2).ravel()], np.int16)
    if not np.array_equal(labels, LABELS):
        raise UserError(
            f"{file}: the labels are not those of digits69 (45 sixes, 45 nines; 5 sixes, 5 nines). {SOURCE}."
        )
    # (n, 784) column by column: the transpose of the reshaped image is upright.
    grey = _whole(file, both, "stim", 0, 255).reshape(-1, SIDE, SIDE).transpose(0, 2, 1).astype(np.uint8)
    captions = [digit_captions.captions(image, int(label)) for image, label in zip(grey, labels, strict=True)]
    return Digits69(both["fmri"].astype(np.float32), np.repeat(grey[..., None], 3, axis=3), labels, captions)


def _whole(file: str | Path, both: dict[str, NDArray[Any]], key: str, lowest: int, highest: int) -> NDArray[np.int64]:
    return whole_numbers(both[key], f"{file}: {key}", lowest=lowest, highest=highest, advice=f"{SOURCE}.")


def pieces_of(data: DataConfig) -> list[Piece]:
    """The files of the prepared folder; the raw file's hash is empty in their settings where no file was given.

    Raises UserError for settings that this data set does not have.
    """
    if len(data.subjects) != 1 or data.image_size != SIDE:
        raise UserError(
            f"digits69 has one subject and images of {SIDE} pixels; got data.subjects={list(data.subjects)} and "
            f"data.image_size={data.image_size}. Take both from data=digits69."
        )
    exists = bool(data.file) and Path(data.file).is_file()
    settings = {"name": data.name, "file_sha256": sha256_file(Path(data.file)) if exists else ""}
    content = cache(partial(read_digits69, data.file))
    name = data.subjects[0]
    return [
        Piece("stimuli.h5", settings, lambda path: _write_stimuli(content(), path)),
        Piece(f"{name}.h5", settings, lambda path: _write_subject(content(), data, name, path)),
    ]


def _write_stimuli(content: Digits69, path: Path) -> None:
    ids = np.arange(N_IMAGES, dtype=np.int32)
    write_stimuli(path, images=content.images, captions=content.captions, image_id=ids, labels=content.labels)


def _write_subject(content: Digits69, data: DataConfig, name: str, path: Path) -> None:
    ids = np.arange(N_IMAGES, dtype=np.int32)
    zeros = np.zeros_like(ids)
    write_subject(
        path,
        voxels=content.voxels,
        image_id=ids,
        session=zeros,
        repeat=zeros,
        trial=ids,
        rois={},
        ijk=np.full((content.voxels.shape[1], 3), -1, np.int16),
        attributes={
            "name": name,
            "source": "digits69 (van Gerven et al. 2010)",
            "simulated": False,
            "mask": "as released; voxel positions and areas are not in the file",
            "betas": "one response per image, as released",
            "scaling": "none",
            "file_sha256": sha256_file(Path(data.file)),
            "stimuli_hash": content_hash(content.images, content.captions, ids, content.labels),
        },
    )


def _load(file: str | Path) -> dict[str, NDArray[Any]]:
    """The six arrays of the file, of checked shapes."""
    if not str(file):
        raise UserError(f"data=digits69 needs data.file=<path to digit69_28x28.mat>. {SOURCE}.")
    if not Path(file).is_file():
        raise UserError(f"data.file={file} does not exist or is not a file. {SOURCE}.")
    content = read_mat(Path(file), KEYS, f"{SOURCE}.", f"data.file={file}")
    _check(file, content)
    return content


def _check(file: str | Path, content: dict[str, Any]) -> None:
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise UserError(f"data.file={file} is another kind of file: it lacks {', '.join(missing)}. {SOURCE}.")
    n_voxels = content["fmriTrn"].shape[-1]
    shapes = {"fmri": n_voxels, "stim": SIDE * SIDE, "label": 1}
    for part, n_rows in (("Trn", N_TRAIN), ("Test", N_IMAGES - N_TRAIN)):
        for name, n_columns in shapes.items():
            arrived = content[name + part].shape
            if arrived != (n_rows, n_columns):
                raise UserError(
                    f"data.file={file}: {name}{part} has shape {arrived}; wanted {(n_rows, n_columns)}. {SOURCE}."
                )
