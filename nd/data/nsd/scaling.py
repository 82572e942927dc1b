"""How the betas of a session are scaled when they are prepared.

``session_train`` (the default) z-scores every voxel by the session's trials that show no shared image, so that no test
trial has a part in it; the released MindEye2 betas ("renorm") were made so. ``session`` uses all trials of the session,
test trials included, as earlier published pipelines do: it is transductive and marked as such.
Shapes: T trials of one session, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

RULES = {
    "raw": "none: percent signal change",
    "session": "z-scored per session and voxel by the mean and deviation of all its trials (transductive)",
    "session_train": "z-scored per session and voxel by the mean and deviation of its training-image trials",
}


def scale_session(
    betas_TV: NDArray[np.float32],
    shared_T: NDArray[np.bool_],
    rule: str,
    constant: str,
    name_voxel: Callable[[int], str],
) -> NDArray[np.float32]:
    """Scale one session's betas in place and return them.

    Args:
        betas_TV: percent signal change.
        shared_T: trials of shared images.
        rule: a key of ``RULES``.
        constant: what to do with voxels that never vary over the trials that give the statistics: "refuse", or "zero".
        name_voxel: says where a voxel is, for messages.

    Raises:
        UserError: constant voxels that are refused, or fewer than two trials to take statistics from.
    """
    fit = ~shared_T if rule == "session_train" else np.ones(len(betas_TV), bool)
    if fit.sum() < 2:
        raise UserError(f"a session has {fit.sum()} trials to be scaled by, wanted at least 2. Use data.scaling=raw.")
    mean, spread = betas_TV[fit].mean(0, dtype=np.float64), betas_TV[fit].std(0, dtype=np.float64)
    flat = spread <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    if flat.any() and constant == "refuse":
        raise UserError(
            f"{name_voxel(int(flat.argmax()))} has the same beta in all trials of the session, and so have "
            f"{int(flat.sum()) - 1} others: it was outside the imaged volume. Leave such voxels out of data.mask, or "
            "set them to 0 in such sessions with data.constant_voxels=zero."
        )
    if rule == "raw":
        return betas_TV
    betas_TV -= mean.astype(np.float32)
    betas_TV /= np.where(flat, 1, spread).astype(np.float32)
    betas_TV[:, flat] = 0
    return betas_TV
