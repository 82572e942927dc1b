"""All scores of a set of reconstructions under one protocol: one value per image and metric.

Memory: pixel metrics and networks read batches of images; of networks one is there at a time, and of its features those
of the stimuli and of one repeat (1,000 images under MindEye2's protocol: 2 GB for AlexNet's layers). Identification by
pixels needs those of one repeat of all images.

N images in the canonical order of their ids, R repeats, B batch, C H W image, D features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError
from nd.metrics.correlation import cosine, feature_distance
from nd.metrics.features import CPU, RANDOM, Features, features, pair_scores, stimulus_features
from nd.metrics.identification import two_way_identification
from nd.metrics.images import check_images, is_constant, resize, to_float
from nd.metrics.measures import LEVELS, OWN_NETWORK, ROW, Measure, View, by_view, columns, encoded_layers, measures_of
from nd.metrics.protocol import check_number, check_protocol, weights_found
from nd.metrics.repeats import Repeat, consistencies, of_repeats, repeats_of

if TYPE_CHECKING:
    from nd.config import ProtocolConfig

PIXEL_BATCH = 4  # images whose pixels are held as floats at once: at 425 px SSIM needs 130 MB for each
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """Features of one layer that brain correlation goes on with: images (N, R, D) and stimuli (N, D), float32."""

    images: NDArray[np.float32]
    stimuli: NDArray[np.float32]


@dataclass(frozen=True)
class PerImage:
    """Scores by metric, each (N,) float64, one of all repeats; repeats scored; constant images among N x R.

    ``kept``: features by name, of the layers in ``protocol.brain``.
    """

    scores: dict[str, NDArray[np.float64]]
    n_constant: int
    n_repeats: int = 1
    kept: dict[str, Kept] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """How networks judge: the protocol, where features of stimuli are kept (None: nowhere), where networks run."""

    protocol: ProtocolConfig
    cache: Path | None = None
    device: torch.device = CPU

    @property
    def weights(self) -> str:
        """Folder of the networks, or what stands for random weights."""
        return RANDOM if self.protocol.random_weights else self.protocol.weights

    def kept_layers(self, view: View) -> dict[str, str]:
        """The layers of a view whose features are kept, by name."""
        layers = encoded_layers(self.protocol)
        return {name: layers[name].layer for name in self.protocol.brain if layers[name].view == view}


def score_images(
    images_NRHW3: Any,
    stimuli_NHW3: NDArray[Any],
    protocol: ProtocolConfig,
    labels: NDArray[Any] | None = None,
    cache: Path | None = None,
    device: torch.device = CPU,
) -> PerImage:
    """Score reconstructions against their stimuli.

    Args:
        images_NRHW3: uint8, or floats in [0, 1]; RGB; an array, or what is sliced like one.
        stimuli_NHW3: the same, in the same order.
        protocol: how.
        labels: (N,) class labels; needed for ``label_two_way``.
        cache: folder in which features of the stimuli are kept; None: they are computed and forgotten.
        device: where the networks run.

    Raises:
        UserError: images of another number or kind, NaN pixels, weights that are not installed.
    """
    _check(images_NRHW3, stimuli_NHW3, protocol)
    weights_found(protocol)  # before hours of work with those that are there
    repeats, judge = repeats_of(images_NRHW3, protocol.aggregation), Judge(protocol, cache, device)
    groups = torch.from_numpy(np.asarray(labels, np.int64)) if labels is not None else None
    scores, n_constant = by_pixels(repeats, stimuli_NHW3, protocol)
    scores |= identified_by_pixels(repeats, stimuli_NHW3, protocol, groups)
    kept: dict[str, Kept] = {}
    for view, measures in by_view(measures_of(protocol)).items():
        found, further = by_features(repeats, stimuli_NHW3, view, measures, judge)
        scores, kept = scores | found, kept | further
    ordered = {name: scores[name].numpy() for name in columns() if name in scores}
    return PerImage(ordered, n_constant, len(repeats), kept)


def _check(images: Any, stimuli: NDArray[Any], protocol: ProtocolConfig) -> None:
    check_images(images, "reconstructions")
    check_images(stimuli, "stimuli")
    if images.ndim != 5 or stimuli.ndim != 4:
        raise UserError(
            f"reconstructions {images.shape} and stimuli {stimuli.shape} were found; "
            "(images, repeats, H, W, 3) and (images, H, W, 3) were wanted."
        )
    if len(images) != len(stimuli):
        raise UserError(f"{len(images)} reconstructions for {len(stimuli)} stimuli; one each is wanted.")
    check_number(protocol, len(images))
    for what, shape in (("reconstructions", images.shape[-3:-1]), ("stimuli", stimuli.shape[-3:-1])):
        if shape[0] != shape[1]:
            raise UserError(f"{what}: {shape[0]} x {shape[1]} pixels; square images are wanted. Crop them first.")
        check_protocol(protocol, shape[0])


def sized(images_NHW3: NDArray[Any], protocol: ProtocolConfig) -> Tensor:
    """Images as the pixel metrics see them: (N, 3, S, S) float32 in [0, 1]."""
    images = to_float(np.asarray(images_NHW3))
    for side in (protocol.picture_size, protocol.image_size):
        if side:
            images = resize(images, side, protocol.resize_filter, protocol.resize_antialias, protocol.resize_arithmetic)
    return images


def by_pixels(repeats: Sequence[Repeat], stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig) -> tuple[Scores, int]:
    """Scores (N,) that need an image's own pixels alone, with the consistency of its repeats; and constant images."""
    by_pixel = [measure for measure in measures_of(protocol).values() if measure.kind == "pixels"]
    batches, n_constant = defaultdict(list), 0
    for start in range(0, len(stimuli_NHW3), PIXEL_BATCH):
        batch = slice(start, start + PIXEL_BATCH)
        true, preds = sized(stimuli_NHW3[batch], protocol), [sized(repeat[batch], protocol) for repeat in repeats]
        n_constant += sum(int(is_constant(pred).sum()) for pred in preds)
        found = _made_one({one.name: [one.function(p, true) for p in preds] for one in by_pixel}, protocol)
        for kind in ("pixcorr", "ssim") if len(preds) > 1 else ():
            found |= consistencies(torch.stack(preds, 1), kind)
        for column, values in found.items():
            batches[column].append(values)
    return {name: torch.cat(values) for name, values in batches.items()}, n_constant


def identified_by_pixels(
    repeats: Sequence[Repeat], stimuli_NHW3: NDArray[Any], protocol: ProtocolConfig, groups: Tensor | None
) -> Scores:
    """Identification (N,) by pixels, among all images and among those of the same group, where the protocol asks."""
    wanted = {"two_way_pixels": None} if protocol.pixel_identification else {}
    among = wanted if groups is None else wanted | {"label_two_way": groups}
    if not among:
        return {}
    true, of_each = sized(stimuli_NHW3, protocol), defaultdict(list)
    for repeat in repeats:
        pred = sized(repeat[:], protocol)
        for name, chosen in among.items():
            shares = two_way_identification(pred, true, chosen, protocol.identification)
            of_each[_column(name, protocol)].append(shares)
    return _made_one(of_each, protocol)


def by_features(
    repeats: Sequence[Repeat], stimuli_NHW3: NDArray[Any], view: View, measures: dict[str, Measure], judge: Judge
) -> tuple[Scores, dict[str, Kept]]:
    """Scores (N,) of all measures of a view, with the consistency of the repeats by the protocol's own high level."""
    layers = {measure.layer for measure in measures.values() if measure.kind != "pair"}
    of_each, held = defaultdict(list), defaultdict[str, list[Tensor]](list)
    keep = judge.kept_layers(view) | ({"": LEVELS[-1]} if view.network == OWN_NETWORK and len(repeats) > 1 else {})
    true = stimulus_features(stimuli_NHW3, view, layers, judge.weights, judge.cache, judge.device) if layers else {}
    for repeat in repeats:
        pred: Features = features(repeat, view, judge.weights, judge.device) if layers else {}
        for name, measure in measures.items():
            if measure.kind == "pair":
                value = pair_scores(repeat, stimuli_NHW3, measure)
            else:
                sides = pred[measure.layer], true[measure.layer]
                value = one_measure(measure.kind, *sides, judge.protocol.identification)
            of_each[_column(name, judge.protocol)].append(value)
        for name, layer in keep.items():
            held[name].append(pred[layer])
    stacked = {name: torch.stack(values, 1) for name, values in held.items()}
    consistency = consistencies(stacked.pop(""), "feature") if "" in stacked else {}
    kept = {name: Kept(values.numpy(), true[keep[name]].numpy()) for name, values in stacked.items()}
    return _made_one(of_each, judge.protocol) | consistency, kept


def one_measure(kind: str, pred_ND: Tensor, true_ND: Tensor, rule: str) -> Tensor:
    """Values (N,) of one repeat of every image; identification is among these N images."""
    if kind == "two_way":
        return two_way_identification(pred_ND, true_ND, None, rule)
    return cosine(pred_ND, true_ND) if kind == "cosine" else feature_distance(pred_ND, true_ND)


def _made_one(of_each: Mapping[str, Sequence[Tensor]], protocol: ProtocolConfig) -> Scores:
    """One score (N,) of those of every repeat, by column."""
    return {name: of_repeats(values, protocol.aggregation, columns()[name].better) for name, values in of_each.items()}


def _column(name: str, protocol: ProtocolConfig) -> str:
    """Row-wise identification has columns of its own."""
    return name + ROW if protocol.identification == "row" and columns()[name].chance else name
