"""All scores of a set of reconstructions under one protocol: one value per image and metric.

Memory: pixel metrics go through batches of images; of networks one is there at a time, and of its features those of the
stimuli and of one repeat (1,000 images under MindEye2's protocol: 2 GB for AlexNet's layers).

N images in the canonical order of their ids, R repeats, B batch, C H W picture, D features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError
from nd.metrics.cache import stimulus_features
from nd.metrics.consistency import SIMILARITIES, repeat_consistency
from nd.metrics.correlation import cosine, feature_distance, pixcorr
from nd.metrics.identification import two_way_identification
from nd.metrics.images import check_pictures, is_constant, resize, to_float
from nd.metrics.measures import LEVELS, METRICS, OWN_NETWORK, PER_COLUMN, ROW, Measure, View, by_view, measures_of
from nd.metrics.network import RANDOM, Features, features
from nd.metrics.pairs import pair_distance
from nd.metrics.protocol import check_number, check_protocol, weights_found
from nd.metrics.ssim import ssim
from nd.schema import ProtocolConfig

PIXEL_BATCH = 4  # images whose pixels are held as floats at once: at 425 px SSIM needs 130 MB for each
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class PerImage:
    """Scores by metric, each (N,) float64 with repeats averaged; repeats scored; constant pictures among N x R."""

    scores: dict[str, NDArray[np.float64]]
    n_constant: int
    n_repeats: int = 1


def score_images(
    images_NRHW3: NDArray[Any],
    stimuli_NHW3: NDArray[Any],
    protocol: ProtocolConfig,
    labels: NDArray[Any] | None = None,
    cache: Path | None = None,
) -> PerImage:
    """Score reconstructions against their stimuli.

    Args:
        images_NRHW3: uint8, or floats in [0, 1]; RGB.
        stimuli_NHW3: the same, in the same order.
        protocol: how.
        labels: (N,) class labels; needed for ``label_two_way``.
        cache: folder in which features of the stimuli are kept; None: they are computed and forgotten.

    Raises:
        UserError: pictures of another number or kind, NaN pixels, weights that are not installed.
    """
    _check(images_NRHW3, stimuli_NHW3, protocol)
    weights_found(protocol)  # before hours of work with those that are there
    images = images_NRHW3[:, :1] if protocol.aggregation == "first" else images_NRHW3
    groups = torch.from_numpy(np.asarray(labels, np.int64)) if labels is not None else None
    scores, n_constant = by_pixels(images, stimuli_NHW3, protocol)
    scores |= identified_by_pixels(images, stimuli_NHW3, protocol, groups)
    for view, measures in by_view(measures_of(protocol)).items():
        scores |= by_features(images, stimuli_NHW3, view, measures, protocol, cache)
    ordered = {name: scores[name].numpy() for name in METRICS if name in scores}
    return PerImage(ordered, n_constant, images.shape[1])


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
    check_number(protocol, len(images))
    if images.shape[1] < 1:
        raise UserError("the reconstructions hold no repeat (second axis of length 0); at least one is wanted.")
    for what, shape in (("reconstructions", images.shape[-3:-1]), ("stimuli", stimuli.shape[-3:-1])):
        if shape[0] != shape[1]:
            raise UserError(f"{what}: {shape[0]} x {shape[1]} pixels; square pictures are wanted. Crop them first.")
        check_protocol(protocol, shape[0])


def sized(images_NHW3: NDArray[Any], protocol: ProtocolConfig) -> Tensor:
    """Pictures as the pixel metrics see them: (N, 3, S, S) float32 in [0, 1]."""
    images = to_float(np.asarray(images_NHW3))
    for side in (protocol.picture_size, protocol.image_size):
        if side:
            images = resize(images, side, protocol.resize_filter, protocol.resize_antialias, protocol.resize_arithmetic)
    return images


def by_pixels(images_NRHW3: NDArray[Any], stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig) -> tuple[Scores, int]:
    """Scores (N,) that need an image's own pixels alone, with the consistency of its repeats; and constant pictures."""
    name = PER_COLUMN if protocol.ssim == "per_column" else "ssim"
    parts, n_constant = defaultdict(list), 0
    for start in range(0, len(images_NRHW3), PIXEL_BATCH):
        batch = slice(start, start + PIXEL_BATCH)
        true, repeats = (
            sized(stimuli_NHW3[batch], protocol),
            [sized(x, protocol) for x in _repeats(images_NRHW3[batch])],
        )
        n_constant += sum(int(is_constant(pred).sum()) for pred in repeats)
        parts["pixcorr"].append(torch.stack([pixcorr(pred, true) for pred in repeats]).mean(0))
        parts[name].append(torch.stack([ssim(pred, true, protocol.ssim) for pred in repeats]).mean(0))
        for kind in ("pixcorr", "ssim") if len(repeats) > 1 else ():
            parts[f"consistency_{kind}"].append(repeat_consistency(torch.stack(repeats, 1), SIMILARITIES[kind]))
    return {name: torch.cat(values) for name, values in parts.items()}, n_constant


def _repeats(images_NRHW3: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield from (images_NRHW3[:, repeat] for repeat in range(images_NRHW3.shape[1]))


def identified_by_pixels(
    images_NRHW3: NDArray[Any], stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig, groups: Tensor | None
) -> Scores:
    """Identification (N,) by pixels, among all images and among those of the same group, where the protocol asks."""
    wanted = {"two_way_pixels": None} if protocol.pixel_identification else {}
    among = wanted if groups is None else wanted | {"label_two_way": groups}
    if not among:
        return {}
    true, parts = sized(stimuli_NHW3, protocol), defaultdict(list)
    for repeat in _repeats(images_NRHW3):
        pred = sized(repeat, protocol)
        for name, chosen in among.items():
            shares = two_way_identification(pred, true, chosen, protocol.identification)
            parts[_column(name, protocol)].append(shares)
    return _averaged(parts)


def by_features(
    images_NRHW3: NDArray[Any],
    stimuli_NHW3: NDArray[Any],
    view: View,
    measures: dict[str, Measure],
    protocol: ProtocolConfig,
    cache: Path | None,
) -> Scores:
    """Scores (N,) of all measures of a view, and the consistency of the repeats by the protocol's own high level."""
    weights, parts = RANDOM if protocol.random_weights else protocol.weights, defaultdict(list)
    pairs = {name for name, measure in measures.items() if measure.kind == "pair"}
    layers = {measure.layer for measure in measures.values() if measure.kind != "pair"}
    true = stimulus_features(stimuli_NHW3, view, layers, weights, cache) if layers else {}
    high: list[Tensor] = []
    for repeat in _repeats(images_NRHW3):
        for name in pairs:
            parts[name].append(pair_distance(repeat, stimuli_NHW3, view))
        pred: Features = features(repeat, view, weights) if layers else {}
        for name in measures.keys() - pairs:
            measure = measures[name]
            value = one_measure(measure.kind, pred[measure.layer], true[measure.layer], protocol.identification)
            parts[_column(name, protocol)].append(value)
        high += [pred[LEVELS[-1]]] if view.network == OWN_NETWORK else []
    consistency = {"consistency_feature": repeat_consistency(torch.stack(high, 1), cosine)} if len(high) > 1 else {}
    return _averaged(parts) | consistency


def one_measure(kind: str, pred_ND: Tensor, true_ND: Tensor, rule: str) -> Tensor:
    """Values (N,) of one repeat of every image; identification is among these N images."""
    if kind == "two_way":
        return two_way_identification(pred_ND, true_ND, None, rule)
    return cosine(pred_ND, true_ND) if kind == "cosine" else feature_distance(pred_ND, true_ND)


def _averaged(parts: dict[str, list[Tensor]]) -> Scores:
    return {name: torch.stack(values).mean(0) for name, values in parts.items()}


def _column(name: str, protocol: ProtocolConfig) -> str:
    """Row-wise identification has columns of its own."""
    return name + ROW if protocol.identification == "row" and METRICS[name].chance else name
