"""The mean over the captions of each image of what a text encoder says about them.

Shapes: B images, K captions of all images together, U of them distinct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError


def caption_mean(
    encode: Callable[[list[str]], Tensor], captions: Sequence[list[str]], max_captions: int, target: str
) -> NDArray[np.float32]:
    """Average the encoded captions of each image; a caption that occurs several times is encoded once.

    Args:
        encode: captions to features (U, ...).
        captions: the captions of B images.
        max_captions: captions averaged per image, the first ones; 0 means all.
        target: the target's name, for the message.

    Returns:
        (B, ...) float32.

    Raises:
        UserError: an image has no caption.
    """
    groups = [list(own[: max_captions or None]) for own in captions]
    if not all(groups):
        raise UserError(f"an image has no caption; target {target} needs at least one. Write captions into stimuli.h5.")
    flat = [caption for group in groups for caption in group]
    unique, where_K = np.unique(np.array(flat, dtype=object), return_inverse=True)
    with torch.inference_mode():
        encoded_U = encode([str(caption) for caption in unique]).float().cpu().numpy()
    first_B = np.concatenate([[0], np.cumsum([len(group) for group in groups])[:-1]])
    counts_B = np.array([len(group) for group in groups], np.float32)
    summed_B: NDArray[np.float32] = np.add.reduceat(encoded_U[where_K], first_B, axis=0)
    return summed_B / counts_B.reshape(-1, *[1] * (summed_B.ndim - 1))
