"""Made-up files in digits69's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from nd.data.digits69 import LABELS


def made_up(n_voxels: int = 4) -> dict[str, Any]:
    """A file of the right shape: pixel (row r, column c) of image i has value r, stored column by column."""
    picture = np.repeat(np.arange(28, dtype=np.uint8)[:, None], 28, axis=1)
    stimuli = np.repeat(picture.flatten(order="F")[None], 100, axis=0)
    labels = np.where(LABELS == 6, 1, 2).astype(np.uint8)[:, None]
    voxels = np.random.default_rng(0).normal(size=(100, n_voxels))
    both = {"fmri": voxels, "stim": stimuli, "label": labels}
    return {f"{k}Trn": v[:90] for k, v in both.items()} | {f"{k}Test": v[90:] for k, v in both.items()}


def noise_file(path: Path) -> Path:
    """Write a file whose images and voxels are noise, all of them different."""
    noise = np.random.default_rng(1).integers(0, 256, (100, 784)).astype(np.uint8)
    savemat(path, made_up(40) | {"stimTrn": noise[:90], "stimTest": noise[90:]})
    return path
