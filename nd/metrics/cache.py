"""Features of the stimuli, kept between evaluations: a second method under one protocol does not compute them again.

One file per view of a network, with a dataset per layer. For 1,000 images AlexNet's take about 1 GB at 256 px, those
of the other networks at most 8 MB each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import atomic_path, open_h5, sha256_array, sha256_json
from nd.metrics.measures import View
from nd.metrics.network import CPU, RANDOM, Features, features
from nd.metrics.networks.table import network_named

log = logging.getLogger(__name__)


def features_path(folder: Path, stimuli_NHW3: NDArray[Any], view: View, weights: str = "") -> Path:
    """Where these stimuli's features lie: named by the content of the images and by what the network does to them."""
    found = digits_of(view.network, weights)
    return folder / f"{view.network}-{sha256_json([sha256_array(stimuli_NHW3), asdict(view), found])}.h5"


def digits_of(network: str, weights: str) -> str:
    """What tells a network's weights from others: the first digits of their SHA-256, or that they are random."""
    return RANDOM if weights == RANDOM else network_named(network).found(weights)


def stimulus_features(
    stimuli_NHW3: NDArray[Any],
    view: View,
    layers: Iterable[str],
    weights: str = "",
    folder: Path | None = None,
    device: torch.device = CPU,
) -> Features:
    """Features of the stimuli by layer, read from ``folder`` or computed and written there (None: only computed)."""
    if folder is None:
        return features(stimuli_NHW3, view, weights, device)
    path = features_path(folder, stimuli_NHW3, view, weights)
    return cached(path, layers, lambda: features(stimuli_NHW3, view, weights, device))


def cached(path: Path, layers: Iterable[str], compute: Callable[[], Features]) -> Features:
    """Read features from a file, or compute and write them; a damaged file is computed again."""
    if path.exists():
        try:
            with open_h5(path) as handle:
                return {layer: torch.from_numpy(np.asarray(handle[layer][()])) for layer in layers}
        except (UserError, KeyError, OSError):
            log.warning("%s is damaged; the features of the stimuli are computed again", path)
    computed = compute()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        for layer, values in computed.items():
            handle.create_dataset(layer, data=values.numpy())
    return computed
