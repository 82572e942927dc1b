"""What features must be before a target is stored. Images are checked by ``nd.data.image_checks``.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.image_checks import named_ids
from nd.errors import UserError


def check_features(name: str, features: NDArray[Any], ids: NDArray[Any]) -> None:
    """Refuse features that are not finite.

    Args:
        name: the target.
        features: (B, ...) floats.
        ids: (B,) the image ids.

    Raises:
        UserError: NaN or infinite values; names the images.
    """
    bad_B = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if bad_B.any():
        raise UserError(
            f"the features {name!r} of {named_ids(ids, bad_B)} are not finite. Are the weights whole? Networks in "
            "target.precision=float16 may also overflow: use bfloat16 or float32."
        )
