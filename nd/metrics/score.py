"""All scores of a set of reconstructions under one protocol: one value per image and metric.

N images in the canonical order of their ids, R repeats, C H W picture, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError
from nd.metrics import network
from nd.metrics.consistency import SIMILARITIES, repeat_consistency
from nd.metrics.correlation import feature_distance, pixcorr
from nd.metrics.identification import two_way_identification
from nd.metrics.images import check_pictures, is_constant, resize, to_float
from nd.metrics.protocol import check_protocol
from nd.metrics.ssim import ssim
from nd.schema import ProtocolConfig

CHANCE = 0.5  # of identification among two
Features = dict[str, Tensor]
Extract = Callable[[Tensor], Features]


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its value by chance (None: there is none) and which way is better."""

    chance: float | None = None
    better: str = "higher"


METRICS = {
    "pixcorr": Metric(),
    "ssim": Metric(),
    "two_way_pixels": Metric(CHANCE),
    **{f"two_way_{level}": Metric(CHANCE) for level in network.LEVELS},
    "feature_distance": Metric(better="lower"),
    "label_two_way": Metric(CHANCE),
    **{f"consistency_{name}": Metric() for name in SIMILARITIES},
}


@dataclass(frozen=True)
class PerImage:
    """Scores by metric, each (N,) float64 with repeats averaged, and the number of constant pictures among N x R."""

    scores: dict[str, NDArray[np.float64]]
    n_constant: int


def score_images(
    images_NRHW3: NDArray[Any],
    stimuli_NHW3: NDArray[Any],
    protocol: ProtocolConfig,
    labels: NDArray[Any] | None = None,
    stimulus_features: Features | None = None,
) -> PerImage:
    """Score reconstructions against their stimuli.

    Args:
        images_NRHW3: uint8, or floats in [0, 1]; RGB.
        stimuli_NHW3: the same, in the same order.
        protocol: how.
        labels: (N,) class labels; needed for ``label_two_way``.
        stimulus_features: what ``extractor(protocol)`` gives for the stimuli, when they are at hand already.

    Raises:
        UserError: pictures of another number or kind, NaN pixels, weights that are not installed.
    """
    _check(images_NRHW3, stimuli_NHW3, protocol)
    extract = extractor(protocol)
    true = sized(stimuli_NHW3, protocol)
    true_features = (stimulus_features or extract(to_float(stimuli_NHW3))) if extract else {}
    repeats = [images_NRHW3[:, repeat] for repeat in range(images_NRHW3.shape[1])]
    pixels = [sized(images, protocol) for images in repeats]
    features = [extract(to_float(images)) if extract else {} for images in repeats]
    groups = torch.from_numpy(np.asarray(labels, np.int64)) if labels is not None else None
    each = [one_repeat(x, true, f, true_features, groups) for x, f in zip(pixels, features, strict=True)]
    scores = {name: torch.stack([scored[name] for scored in each]).mean(0) for name in each[0]}
    scores |= consistency(torch.stack(pixels, 1), [f["high"] for f in features if f]) if len(repeats) > 1 else {}
    n_constant = sum(int(is_constant(x).sum()) for x in pixels)
    return PerImage({name: scores[name].numpy() for name in METRICS if name in scores}, n_constant)


def _check(images: NDArray[Any], stimuli: NDArray[Any], protocol: ProtocolConfig) -> None:
    check_pictures(images, "reconstructions")
    check_pictures(stimuli, "stimuli")
    if images.ndim != 5 or stimuli.ndim != 4:
        raise UserError(
            f"reconstructions {images.shape} and stimuli {stimuli.shape} were found; "
            "(images, repeats, H, W, 3) and (images, H, W, 3) were wanted."
        )
    if len(images) != len(stimuli):
        raise UserError(f"{len(images)} reconstructions for {len(stimuli)} stimuli; one each is wanted.")
    if images.shape[1] < 1:
        raise UserError("the reconstructions hold no repeat (second axis of length 0); at least one is wanted.")
    for what, shape in (("reconstructions", images.shape[-3:-1]), ("stimuli", stimuli.shape[-3:-1])):
        if shape[0] != shape[1]:
            raise UserError(f"{what}: {shape[0]} x {shape[1]} pixels; square pictures are wanted. Crop them first.")
        check_protocol(protocol, shape[0])


def extractor(protocol: ProtocolConfig) -> Extract | None:
    """The function from images (B, 3, H, W) in [0, 1] to features by level; None where a protocol has no network."""
    if protocol.network == "none":
        return None
    return lambda images: network.features(
        images, protocol.network_size, protocol.resize_filter, protocol.resize_antialias
    )


def sized(images_NHW3: NDArray[Any], protocol: ProtocolConfig) -> Tensor:
    """Pictures as the pixel metrics see them: (N, 3, S, S) float32 in [0, 1]."""
    return resize(to_float(images_NHW3), protocol.image_size, protocol.resize_filter, protocol.resize_antialias)


def one_repeat(
    pred_NCHW: Tensor, true_NCHW: Tensor, pred: Features, true: Features, groups: Tensor | None
) -> dict[str, Tensor]:
    """Scores (N,) of one repeat of every image; identification is among these N images."""
    scores = {
        "pixcorr": pixcorr(pred_NCHW, true_NCHW),
        "ssim": ssim(pred_NCHW, true_NCHW),
        "two_way_pixels": two_way_identification(pred_NCHW, true_NCHW),
    }
    for level in pred:
        scores[f"two_way_{level}"] = two_way_identification(pred[level], true[level])
    if pred:
        scores["feature_distance"] = feature_distance(pred["high"], true["high"])
    if groups is not None:
        scores["label_two_way"] = two_way_identification(pred_NCHW, true_NCHW, groups)
    return scores


def consistency(pixels_NRCHW: Tensor, features_RND: list[Tensor]) -> dict[str, Tensor]:
    """Consistency (N,) of the repeats by pixels, SSIM and, where the protocol has a network, high-level features."""
    scores = {
        f"consistency_{name}": repeat_consistency(pixels_NRCHW, SIMILARITIES[name]) for name in ("pixcorr", "ssim")
    }
    if features_RND:
        scores["consistency_feature"] = repeat_consistency(torch.stack(features_RND, 1), SIMILARITIES["feature"])
    return scores
