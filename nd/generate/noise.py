"""Starting noise that belongs to an image and a repeat, and to nothing else.

B images, R repeats per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nd.targets.noise import keyed_generator, keyed_normal

__all__ = ["keyed_generator", "noise_for", "shared_noise"]

DUMMY_DRAWS = 40  # of the released code between two repeats


def noise_for(seed: int, image_ids: Sequence[int], repeats: int, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise for every (image, repeat), a function of (seed, image id, repeat) alone.

    Args:
        seed: at least 0.
        image_ids: B stimulus numbers, at least 0.
        repeats: R, at least 1.
        shape: of one latent, for example (4, 16, 16).

    Returns:
        (B, R, *shape) float32.
    """
    noise = np.empty((len(image_ids), repeats, *shape), dtype=np.float32)
    for repeat in range(repeats):
        noise[:, repeat] = keyed_normal(seed, image_ids, repeat, shape)
    return torch.from_numpy(noise)


def shared_noise(seed: int, repeats: int, shape: Sequence[int]) -> Tensor:
    """Draw the noises that the released code gives to every image alike: (R, *shape) float32.

    It seeds torch anew for every image, draws one noise per repeat and ``DUMMY_DRAWS`` more after each, which it throws
    away (HaoyyLi/NeuralDiffuser@9286cad:scripts/recon.py:188-217). Drawn on the CPU, so that the images do not depend
    on the device; the released code drew on a GPU, which gives other numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(*shape, generator=generator) for _ in range((repeats - 1) * (1 + DUMMY_DRAWS) + 1)]
    return torch.stack(draws[:: 1 + DUMMY_DRAWS])
