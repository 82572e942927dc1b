"""Pictures through a judging network: one pass gives all the layers that measures of one view read.

B batch, C H W picture, D features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nd.metrics.images import resize, to_float
from nd.metrics.measures import View
from nd.metrics.networks.table import network_named

BATCH = 16  # images per forward pass: activations that stay in the processor's cache are the faster ones
RANDOM = ":random:"  # in place of a weights folder: random weights, for tests and benchmarks
Features = dict[str, Tensor]


@lru_cache(maxsize=1)  # one network at a time: CLIP's ViT-L/14 alone is 1.2 GB
def loaded(name: str, folder: str) -> nn.Module:
    """The network, frozen, in inference mode; with random weights (the same each time) where ``folder`` is RANDOM."""
    network = network_named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network.build(None if folder == RANDOM else network.state(folder))
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def seen_by(images_BCHW: Tensor, view: View) -> Tensor:
    """Pictures in [0, 1] at the size in which the view's network sees them, (B, 3, S, S)."""
    for side in (view.via, view.size):
        if side:
            images_BCHW = resize(images_BCHW, side, view.filter, view.antialias, view.arithmetic)
    return images_BCHW


def features(images_BHW3: NDArray[Any], view: View, folder: str = "") -> Features:
    """Features {layer: (B, D) float32} of RGB pictures, uint8 or floats in [0, 1]; one pass for all layers.

    Args:
        images_BHW3: checked pictures (``nd.metrics.images.check_pictures``); turned into floats batch by batch.
        view: which network, and how it sees them.
        folder: ``protocol.weights``, or ``RANDOM``.

    Raises:
        UserError: weights that are absent or others than the published ones.
    """
    network, normalise = loaded(view.network, folder), network_named(view.network).normalise
    kept: Features = {}
    for start in range(0, len(images_BHW3), BATCH):
        with torch.inference_mode():
            batch = to_float(np.asarray(images_BHW3[start : start + BATCH]))
            outputs = network(normalise(seen_by(batch, view)).contiguous(memory_format=torch.channels_last))
        for layer, values in outputs.items():
            if layer not in kept:  # allocated whole at once: collecting parts would need twice the memory
                kept[layer] = torch.empty(len(images_BHW3), values.shape[1])
            kept[layer][start : start + len(values)] = values
    return kept
