"""The brain of a simulated subject as NSD's volumes: ROIs with their label tables, noise ceilings, single-trial betas.

Voxels keep their place on the grid. ROI volumes hold -1 outside the cortex, 0 in cortex outside the ROIs, labels from
1 on.

Shapes: V voxels, T trials of a session, X Y Z grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.nsd.facts import BETA_UNIT
from nd.data.nsd.tree import betas_folder, label_paths, roi_path, session_paths
from nd.data.subject import Subject
from nd.errors import UserError, unknown
from nd.files import write_text
from nd.scenes.brain import subject_rng

Grid = tuple[int, int, int]

VOXEL_MM = 1.8
# Names of the labels from 1 on, as in NSD's label tables. nsdgeneral needs none.
EARLY_LABELS = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
LABELS = {
    "nsdgeneral": (),
    "prf-visualrois": EARLY_LABELS,
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
    "Kastner2015": (
        *EARLY_LABELS, "VO1", "VO2", "PHC1", "PHC2", "TO2", "TO1", "LO2", "LO1", "V3B", "V3A",
        "IPS0", "IPS1", "IPS2", "IPS3", "IPS4", "IPS5", "SPL1", "FEF",
    ),
}  # fmt: skip
EARLY = ("V1", "V2", "V3", "hV4")
IN_STREAMS = {**dict.fromkeys(EARLY, "early"), "ventral": "ventral", "lateral": "lateral", "parietal": "parietal"}
IN_KASTNER = {"ventral": "VO1", "place_like": "PHC1", "lateral": "LO1", "parietal": "IPS0"}

# A voxel's betas: mean + spread * z, percent. Far more than a real voxel's, so that int16 keeps z: a step of 1/300 is
# 1/300/8 = 4e-4 of z at most. A voxel with large z gets a smaller spread, down to a step of 8e-4.
MEAN_RANGE, SPREAD_RANGE, SPREAD_LEAST = 2.0, (8.0, 12.0), 4.0
BETA_MOST = 32767 / BETA_UNIT


def write_rois(root: Path, subject: Subject, wanted: Grid | None = None) -> Grid:
    """Write every ROI volume and its label table; return the shape of the grid.

    Raises UserError where ``wanted`` is smaller than the brain, or the voxels are not in C order of the grid.
    """
    grid = grid_of(subject, wanted)
    outside = np.where(cortex_of(subject, grid), 0, -1).astype(np.int16)
    for volume, labels_V in roi_labels(subject).items():
        values = outside.copy()
        values[tuple(subject.ijk.T)] = labels_V
        save_volume(root / roi_path(subject.name, volume), values)
        if LABELS[volume]:
            lines = [f"{k} {name}" for k, name in enumerate(("Unknown", *LABELS[volume]))]
            write_text(root / label_paths(subject.name, volume)[0], "\n".join(lines) + "\n")
    return grid


def grid_of(subject: Subject, wanted: Grid | None) -> Grid:
    """The wanted grid, or one with a margin above the brain. UserError where it or the voxels do not fit."""
    least = subject.ijk.max(0).astype(int) + 1
    x, y, z = wanted or (int(n) + 1 for n in least)
    if subject.ijk.min() < 0 or (least > (x, y, z)).any():
        raise UserError(f"{subject.path} has voxels at {subject.ijk.min(0)} to {least - 1}: outside grid {(x, y, z)}.")
    place = np.ravel_multi_index(tuple(subject.ijk.T.astype(int)), (x, y, z))
    if (np.diff(place) <= 0).any():
        raise UserError(f"{subject.path}: voxels are not in C order of the grid, in which masks are read.")
    return x, y, z


def cortex_of(subject: Subject, grid: Grid) -> NDArray[np.bool_]:
    """(X, Y, Z) the subject's voxels and all that touch them."""
    from scipy.ndimage import binary_dilation

    inside = np.zeros(grid, bool)
    inside[tuple(subject.ijk.T)] = True
    return np.asarray(binary_dilation(inside), bool)


def roi_labels(subject: Subject) -> dict[str, NDArray[np.int16]]:
    """(V,) label of every voxel in each volume."""
    nothing = np.zeros(subject.n_voxels, bool)
    masks = {name: subject.rois.get(name, nothing) for name in (*IN_STREAMS, "face_like", "place_like")}
    out = {volume: np.zeros(subject.n_voxels, np.int16) for volume in LABELS}
    out["nsdgeneral"][:] = 1
    for area in EARLY:
        out["prf-visualrois"][masks[area]] = _early_labels(area, subject.ijk[masks[area]])
        out["prf-eccrois"][masks[area]] = 1 + _part(subject.ijk[masks[area], 1], len(LABELS["prf-eccrois"]))
    for area, name in IN_STREAMS.items():
        out["streams"][masks[area]] = 1 + LABELS["streams"].index(name)
    out["Kastner2015"][:] = out["prf-visualrois"]
    for area, name in IN_KASTNER.items():
        out["Kastner2015"][masks[area]] = 1 + LABELS["Kastner2015"].index(name)
    out["floc-faces"][masks["face_like"]] = 1
    out["floc-places"][masks["place_like"]] = 1
    return out


def _early_labels(area: str, ijk: NDArray[np.int16]) -> NDArray[np.intp]:
    """Label of each voxel of one early area: the lower half is ventral, the upper dorsal; hV4 has one label."""
    if area == "hV4":
        return np.full(len(ijk), 1 + EARLY_LABELS.index(area))
    return 1 + EARLY_LABELS.index(f"{area}v") + _part(ijk[:, 2], 2)


def _part(values: NDArray[np.int16], n_parts: int) -> NDArray[np.intp]:
    """0 .. n_parts - 1: part of the ranking each value lies in; parts are equally large, ties in the order given."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return rank * n_parts // max(len(values), 1)


def write_ncsnr(root: Path, subject: Subject, grid: Grid, version: str) -> None:
    """Write ncsnr.nii.gz (float32; 0 where there is no voxel), if the subject's is known."""
    if subject.ncsnr is None:
        return
    values = np.zeros(grid, np.float32)
    values[tuple(subject.ijk.T)] = subject.ncsnr
    save_volume(root / betas_folder(subject.name, version) / "ncsnr.nii.gz", values)


def write_betas(root: Path, subject: Subject, grid: Grid, version: str, forms: Sequence[str]) -> None:
    """Write the betas of every session, in the forms that ``forms`` names in turn. UserError for an unknown form."""
    wrong = [form for form in forms if form not in WRITERS]
    if wrong or not forms:
        raise unknown("form of the betas", wrong[0] if wrong else "", WRITERS)
    margin = cortex_of(subject, grid)
    margin[tuple(subject.ijk.T)] = False
    beside = np.argwhere(margin)
    ijk = np.concatenate([subject.ijk.astype(int), beside])
    for session in range(subject.n_sessions):
        rng = subject_rng(int(subject.attributes.get("world_seed", 0)), subject.name, f"percent signal {session}")
        values = percent_signal(subject.voxels(np.flatnonzero(subject.session == session)), rng, subject.path)
        # A reader that takes voxels from beside the mask must notice.
        noise = np.rint(rng.normal(0, 5 * BETA_UNIT, (len(values), len(beside)))).astype(np.int16)
        form = forms[session % len(forms)]
        path = root / session_paths(subject.name, version, session + 1)[list(WRITERS).index(form)]
        WRITERS[form](path, np.concatenate([values, noise], 1), ijk, grid)


def percent_signal(values_TV: NDArray[np.float32], rng: np.random.Generator, path: Path) -> NDArray[np.int16]:
    """(T, V) int16 betas in NSD's unit (percent signal change times 300) whose z-scores are ``values_TV``.

    Rounding moves a value by at most 1/600/spread, 2e-4 for spreads from 8 on; z-scored again they were within 3e-4 of
    ``values_TV`` (1,492 voxels, 12 sessions). Raises UserError where values are so far out that int16 cannot hold them
    with a spread of at least 4.
    """
    n_voxels = values_TV.shape[1]
    mean_V = rng.uniform(-MEAN_RANGE, MEAN_RANGE, n_voxels)
    room_V = (BETA_MOST - MEAN_RANGE) / np.maximum(np.abs(values_TV).max(0), 1e-9).astype(np.float64)
    spread_V = np.minimum(rng.uniform(*SPREAD_RANGE, n_voxels), room_V)
    if (spread_V < SPREAD_LEAST).any():
        voxel = int(spread_V.argmin())
        raise UserError(
            f"{path}: voxel {voxel} reaches {np.abs(values_TV[:, voxel]).max():.1f} standard deviations; int16 betas "
            f"hold at most {(BETA_MOST - MEAN_RANGE) / SPREAD_LEAST:.0f}. Leave the voxel out."
        )
    return np.rint((mean_V + spread_V * values_TV) * BETA_UNIT).astype(np.int16)


def write_nifti(path: Path, values_TV: NDArray[np.int16], ijk: NDArray[Any], grid: Grid) -> None:
    """A session's betas as (X, Y, Z, T) int16 without scale factors; 0 where there is no voxel."""
    volume = np.zeros((*grid, len(values_TV)), np.int16)
    volume[tuple(ijk.T)] = values_TV.T
    save_volume(path, volume)


def write_hdf5(path: Path, values_TV: NDArray[np.int16], ijk: NDArray[Any], grid: Grid) -> None:
    """The same as dataset ``betas``: MATLAB wrote (X, Y, Z, T), which is (T, Z, Y, X) here, a chunk for each voxel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_trials = len(values_TV)
    with h5py.File(path, "w") as handle:
        betas = handle.create_dataset(
            "betas", (n_trials, *grid[::-1]), np.int16, chunks=(n_trials, 1, 1, 1), fillvalue=0
        )
        for (i, j, k), column in zip(ijk.tolist(), np.ascontiguousarray(values_TV.T), strict=True):
            betas.id.write_direct_chunk((0, k, j, i), column.tobytes())


def save_volume(path: Path, values: NDArray[Any]) -> None:
    """Write a NIfTI file of the array's own dtype, on a grid of 1.8 mm."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])), path)


# In the order of nd.data.nsd.tree.session_paths.
WRITERS: dict[str, Callable[[Path, NDArray[np.int16], NDArray[Any], Grid], None]] = {
    "nii.gz": write_nifti,
    "hdf5": write_hdf5,
}
