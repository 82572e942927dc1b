"""The decoded targets of a method beside the true ones: retrieval by them, and how varied they are.

No image takes part, so this says what the mappers alone have found. It is added to a run's scores where the predictions
and the true targets are there already; nothing is made for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.evaluation.learned_targets import learned_store
from nd.generate.inputs import PredictedFeatures
from nd.metrics.diversity import diversity
from nd.metrics.measures import RETRIEVAL
from nd.metrics.retrieval import DIRECTIONS, retrieval
from nd.runs.folder import RunFolder
from nd.runs.identity import reads_predictions
from nd.targets.store import TargetStore

log = logging.getLogger(__name__)

MOST_NUMBERS = 100_000  # of a target per image: 1,000 images, decoded and true, are 800 MB


@dataclass(frozen=True)
class DecodedScores:
    """What decoded targets say, as ``scores.json`` holds it; empty where nothing is decoded.

    Attributes:
        run: id of the predict run, the same for all methods that share their predictions.
        retrieval: summaries by ``retrieval_<target>_image`` and ``retrieval_<target>_brain``.
        diversity: by target, effective dimensions of ``predicted`` and ``true`` values of ``n`` images.
    """

    run: str = ""
    retrieval: dict[str, dict[str, Any]] = field(default_factory=dict)
    diversity: dict[str, dict[str, Any]] = field(default_factory=dict)


def decoded_scores(cfg: Config, image_ids: NDArray[np.int32]) -> DecodedScores:
    """Compare the decoded targets of a method with the true ones of the same images.

    Args:
        cfg: of the run.
        image_ids: (N,) the images that were scored; retrieval draws from them.

    Returns:
        Nothing for methods that decode nothing, images made elsewhere, a single image, predictions or stores that
        are not there, and targets of more than ``MOST_NUMBERS`` numbers an image.
    """
    if cfg.images_hash or not reads_predictions(cfg) or len(image_ids) < 2:
        return DecodedScores()
    run = RunFolder.open(cfg, "predict")
    if not run.done:
        return DecodedScores()
    scores = DecodedScores(run.run_id)
    for target, decoded, true in _pairs(cfg, PredictedFeatures(run.output("predictions.h5")), image_ids):
        both = retrieval(torch.from_numpy(decoded), torch.from_numpy(true))
        scores.retrieval.update({f"{RETRIEVAL}{target}_{name}": both[name].summary() for name in DIRECTIONS})
        scores.diversity[target] = asdict(diversity(decoded, true))
    return scores if scores.diversity else DecodedScores()


def _pairs(
    cfg: Config, predicted: PredictedFeatures, image_ids: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Decoded and true values (N, ...) by target."""
    for target in cfg.method.targets:
        store, lacking = _store(cfg, target)
        if store is None:
            log.warning("no scores of decoded %s, for its true values are not there: %s", target, lacking)
        elif store.size > MOST_NUMBERS:
            log.info("no scores of decoded %s: %s numbers an image are too many", target, f"{store.size:,}")
        else:
            yield target, predicted.rows(target, image_ids.tolist()), store.rows(image_ids)


def _store(cfg: Config, target: str) -> tuple[TargetStore | None, str]:
    """The true values, or why there are none; runs may be scored where the weights that made them are not."""
    try:
        path = learned_store(cfg, target)
    except UserError as error:
        return None, str(error)
    return (TargetStore(path), "") if path.is_file() else (None, f"no {path}")
