"""Retrieval by the decoded targets of a method: no image takes part, so it says what the mappers alone have found.

It is added to a run's scores where the predictions and the true targets are there already; nothing is made for it.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.generate.inputs import PredictedFeatures
from nd.metrics.retrieval import DIRECTIONS, retrieval
from nd.runs.folder import RunFolder
from nd.runs.identity import reads_predictions
from nd.targets.store import TargetStore, store_path

log = logging.getLogger(__name__)

MOST_NUMBERS = 100_000  # of a target per image: 1,000 images, decoded and true, are 800 MB


def decoded_retrieval(cfg: Config, image_ids: NDArray[np.int32]) -> dict[str, dict[str, Any]]:
    """Summaries by ``retrieval_<target>_image`` and ``retrieval_<target>_brain`` of the method's targets.

    Args:
        image_ids: (N,) the images that were scored; they are drawn from.

    Returns:
        Nothing for methods that decode nothing, images made elsewhere, a single image, predictions or stores that
        are not there, and targets of more than ``MOST_NUMBERS``.
    """
    if cfg.images_hash or not reads_predictions(cfg) or len(image_ids) < 2:
        return {}
    run, found = RunFolder.open(cfg, "predict"), dict[str, dict[str, Any]]()
    if not run.done:
        return {}
    predicted = PredictedFeatures(run.path / "predictions.h5")
    for target in cfg.method.targets:
        store = _store(cfg, target)
        if store is None or store.size > MOST_NUMBERS:
            log.info("no retrieval by %s: its true values are not extracted, or are too many", target)
            continue
        brain, image = predicted.rows(target, image_ids.tolist()), store.rows(image_ids)
        both = retrieval(torch.from_numpy(brain), torch.from_numpy(image))
        found |= {f"retrieval_{target}_{name}": both[name].summary() for name in DIRECTIONS}
    return found


def _store(cfg: Config, target: str) -> TargetStore | None:
    """The true values, where they are; runs may be scored where the weights that made them are not."""
    try:
        path = store_path(cfg, target)
    except UserError:
        return None
    return TargetStore(path) if path.is_file() else None
