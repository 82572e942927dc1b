"""Features of the stimuli, kept between evaluations: a second method under one protocol does not compute them again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import atomic_path, open_h5, sha256_array, sha256_json
from nd.metrics.images import to_float
from nd.metrics.network import LEVELS
from nd.metrics.protocol import settings
from nd.metrics.score import Features, extractor
from nd.schema import ProtocolConfig

log = logging.getLogger(__name__)

FEATURE_SETTINGS = ("network", "network_size", "resize_filter", "resize_antialias", "weights", "level_blocks")


def features_path(folder: Path, stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig) -> Path:
    """Where these stimuli's features lie: named by the content of the pictures and by what the network does to them."""
    values = settings(protocol)
    key = [sha256_array(stimuli_NHW3), {name: values[name] for name in FEATURE_SETTINGS}]
    return folder / f"{protocol.network}-{sha256_json(key)}.h5"


def stimulus_features(folder: Path, stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig) -> Features | None:
    """Features of the stimuli by level, read from ``folder`` or computed and written there; None without a network."""
    extract = extractor(protocol)
    if extract is None:
        return None
    return cached(features_path(folder, stimuli_NHW3, protocol), lambda: extract(to_float(stimuli_NHW3)))


def cached(path: Path, compute: Callable[[], Features]) -> Features:
    """Read features from a file, or compute and write them; a damaged file is computed again."""
    if path.exists():
        try:
            with open_h5(path) as handle:
                return {level: torch.from_numpy(np.asarray(handle[level][()])) for level in LEVELS}
        except (UserError, KeyError, OSError):
            log.warning("%s is damaged; the features of the stimuli are computed again", path)
    features = compute()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        for level, values in features.items():
            handle.create_dataset(level, data=values.numpy())
    return features
