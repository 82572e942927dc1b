"""The images that were decoded well, which MindDiffuser's protocol scores alone, and how well each was decoded.

Lu et al. (2023, 4.3.2) score "test set images with a decoding accuracy of 0.3 or higher", of semantics and structure;
what accuracy is, they leave open. Here an image's accuracy for a target is the correlation, over the target's numbers,
of its decoded with its true values, both standardised by the training images: without that, what all images share would
count as decoded. An image counts by the worse of its targets. Numbers that a mapper leaves out (``mapper.keep``) take
no part.

N images, P numbers of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.evaluation.learned_targets import learned_store
from nd.files import sha256_json
from nd.generate.inputs import PredictedFeatures, TrainingImages
from nd.runs.folder import found
from nd.targets.store import TargetStore

AT_ONCE = 256  # images whose targets are held: 230,400 numbers of six layers are 0.9 MB an image
LEAST = 3  # images; of fewer, neither identification nor an interval says anything


@dataclass(frozen=True)
class WellDecoded:
    """Which images are scored.

    Attributes:
        rows: of the images, in their order (n,).
        accuracy: of every image (N,), by the worse of its targets.
        summary: what ``scores.json`` says of the selection.
    """

    rows: NDArray[np.intp]
    accuracy: NDArray[np.float64]
    summary: dict[str, Any]


def well_decoded(cfg: Config, image_ids: NDArray[np.int32]) -> WellDecoded:
    """Select the images whose targets were decoded at least as well as the protocol asks for.

    Args:
        cfg: its protocol.min_decoding and decoding_targets; its predict run and target stores are read.
        image_ids: (N,).

    Raises:
        UserError: nothing was predicted, or fewer than three images are left.
    """
    protocol = cfg.protocol
    predicted = PredictedFeatures(found(cfg, "predict").output("predictions.h5"))
    by_target = {name: _accuracy(cfg, predicted, name, image_ids) for name in protocol.decoding_targets}
    accuracy = np.min(list(by_target.values()), axis=0)
    rows = np.flatnonzero(accuracy >= protocol.min_decoding)
    if len(rows) < LEAST:
        raise UserError(
            f"protocol.min_decoding={protocol.min_decoding}: {len(rows)} of {len(image_ids)} images were decoded so "
            f"well (the best has {accuracy.max():.2f}); at least {LEAST} are needed. Lower it, which marks the "
            "protocol as changed, or score all images under another protocol."
        )
    summary = {
        "at_least": protocol.min_decoding, "n": len(rows), "of": len(image_ids), "share": len(rows) / len(image_ids),
        "mean_accuracy": {name: float(values.mean()) for name, values in by_target.items()},
        "images": sha256_json([int(i) for i in image_ids[rows]]),
    }  # fmt: skip
    return WellDecoded(rows, accuracy, summary)


def _accuracy(
    cfg: Config, predicted: PredictedFeatures, target: str, image_ids: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Accuracy (N,) of one target, fold by fold."""
    training, path = TrainingImages(cfg), learned_store(cfg, target)
    fold_N, found_N = np.array([training.fold_of(int(i)) for i in image_ids]), np.zeros(len(image_ids))
    for fold in np.unique(fold_N):
        ids = training.ids(int(fold))
        mean_P, std_P = spread_of(TargetStore(path, allowed_ids=ids), ids)
        rows = np.flatnonzero(fold_N == fold)
        for part in np.array_split(rows, range(AT_ONCE, len(rows), AT_ONCE)):
            true, decoded = TargetStore(path).rows(image_ids[part]), predicted.rows(target, image_ids[part].tolist())
            found_N[part] = accuracies(decoded, true, mean_P, std_P)
    return found_N


def spread_of(store: TargetStore, ids: Sequence[int] | NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation (P,) of a target over some images."""
    total, squares, ids = np.zeros(store.size), np.zeros(store.size), np.asarray(ids)
    mean_P = store.columns(ids[:1], 0, store.size)[0].astype(np.float64)  # near enough to keep the squares small
    for part in np.array_split(ids, range(AT_ONCE, len(ids), AT_ONCE)):
        off = store.columns(part, 0, store.size) - mean_P
        total, squares = total + off.sum(0), squares + (off**2).sum(0)
    shift = total / len(ids)
    return mean_P + shift, np.sqrt(np.maximum(squares / len(ids) - shift**2, 0))


def accuracies(
    decoded: NDArray[np.float32], true: NDArray[np.float32], mean_P: NDArray[Any], std_P: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the correlation of each image's decoded with its true values, both standardised.

    Args:
        decoded: (N, ...) with P numbers an image; 0 where a number is not decoded.
        true: of the same shape.
        mean_P: of the training images.
        std_P: of the training images; numbers that do not vary take no part.
    """
    decoded_NP, true_NP = decoded.reshape(len(decoded), -1), true.reshape(len(true), -1)
    varies_P = std_P > np.finfo(np.float32).eps * np.abs(mean_P)
    scale_P = np.where(varies_P, std_P, 1)
    found = []
    for one, other in zip(decoded_NP, true_NP, strict=True):
        used = varies_P & (one != 0)
        both = [((row - mean_P) / scale_P)[used] for row in (one, other)]
        found.append(float(np.corrcoef(*both)[0, 1]) if used.sum() > 1 else 0.0)
    return np.nan_to_num(np.array(found))
