"""Reconstructions as a file (``images`` (N, R, H, W, 3), ``image_id`` (N,)), and whether they are the ones wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import open_h5


def read_images(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32], dict[str, Any]]:
    """Read pictures (N, R, H, W, 3) and their ids (N,), both in rising order of ids, and the file's attributes."""
    with open_h5(path) as handle:
        missing = [name for name in ("images", "image_id") if name not in handle]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}. Remove its folder and run `nd reconstruct` again.")
        images, image_ids, facts = handle["images"][()], handle["image_id"][()], dict(handle.attrs)
    if len(images) != len(image_ids) or len(np.unique(image_ids)) != len(image_ids):
        raise UserError(
            f"{path}: {len(images)} pictures for {len(np.unique(image_ids))} different image ids; one each is wanted."
        )
    order = np.argsort(image_ids)
    return images[order], image_ids[order], facts


def check_ids(image_ids: NDArray[np.int32], wanted: Sequence[int], path: Path) -> None:
    """Raise UserError unless exactly the wanted images are there: scores of other sets are not comparable."""
    missing, extra = np.setdiff1d(wanted, image_ids), np.setdiff1d(image_ids, wanted)
    if missing.size or extra.size:
        raise UserError(
            f"{path} holds {len(image_ids)} images, the split has {len(wanted)}: {missing.size} missing "
            f"{missing[:5].tolist()}, {extra.size} that do not belong {extra[:5].tolist()}. "
            "Remove its folder and run `nd reconstruct` again with the same data settings."
        )
