"""Pictures through a judging network: one pass gives all the layers that measures of one view read.

B batch, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nd.metrics.images import resize, to_float
from nd.metrics.measures import View
from nd.metrics.networks.table import network_named

BATCH = 16  # images per forward pass: activations that stay in the processor's cache are the faster ones
RANDOM = ":random:"  # in place of a weights folder: random weights, for tests and benchmarks
CPU = torch.device("cpu")
Features = dict[str, Tensor]


@lru_cache(maxsize=1)  # one network at a time: CLIP's ViT-L/14 alone is 1.2 GB
def loaded(name: str, folder: str, device: torch.device = CPU) -> nn.Module:
    """The network, frozen, in inference mode; with random weights (the same each time) where ``folder`` is RANDOM."""
    network = network_named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network.build(None if folder == RANDOM else network.state(folder))
    return module.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def seen_by(images_BCHW: Tensor, view: View) -> Tensor:
    """Pictures in [0, 1] at the size in which the view's network sees them, (B, 3, S, S)."""
    for side in (view.via, view.size):
        if side:
            images_BCHW = resize(images_BCHW, side, view.filter, view.antialias, view.arithmetic)
    return images_BCHW


def features(
    images_BHW3: Any, view: View, folder: str = "", device: torch.device = CPU, layers: Collection[str] = ()
) -> Features:
    """Features {layer: (B, D) float32, on the CPU} of RGB images, uint8 or floats in [0, 1]; one pass for all layers.

    Args:
        images_BHW3: checked images (``nd.metrics.images.check_pictures``), an array or what is sliced like one; read
            and turned into floats batch by batch.
        view: which network, and how it sees them.
        folder: ``protocol.weights``, or ``RANDOM``.
        device: where the network runs, in float32 without shortcuts (TF32), so that scores do not depend on it.
        layers: those kept, by default all that measures read.

    Raises:
        UserError: weights that are absent or others than the published ones.
    """
    network, normalise = loaded(view.network, folder, device), network_named(view.network).normalise
    kept: Features = {}
    for start in range(0, len(images_BHW3), BATCH):
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            batch = seen_by(to_float(np.asarray(images_BHW3[start : start + BATCH])), view)
            outputs = network(normalise(batch.to(device)).contiguous(memory_format=torch.channels_last))
        for layer, values in outputs.items():
            if layers and layer not in layers:
                continue
            if layer not in kept:  # allocated whole at once: collecting parts would need twice the memory
                kept[layer] = torch.empty(len(images_BHW3), values.shape[1])
            kept[layer][start : start + len(values)] = values
    return kept
