"""Brain correlation of a run's images by ROI, and the noise ceiling of the voxels that its methods decode from.

For every layer in ``protocol.brain`` an encoder (``nd.evaluation.brain_correlation``) is fitted on training images of
the same fold: from the layer's features of the images shown to the subject's voxels, those inside ``subject.roi``.
Features of the training stimuli are kept under ``paths.cache``.

N images, R repeats, D features, V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Stimuli, mean_betas, open_subject
from nd.data.subject import Subject
from nd.errors import UserError
from nd.evaluation.brain_correlation import BrainCorrelation, Encoder, brain_correlation, ceilings_of
from nd.files import sha256_json
from nd.generate.inputs import TrainingImages, part_ids
from nd.metrics.features import cached, digits_of, features
from nd.metrics.intervals import bootstrap_interval
from nd.metrics.measures import BRAIN, Measure, encoded_layers
from nd.metrics.noise_ceiling import noise_ceiling
from nd.metrics.score import Judge, Kept

Scores = dict[str, NDArray[np.float64]]
Found = dict[str, BrainCorrelation]


class Shown:
    """Training images (N, H, W, 3), read as they are asked for; no other image can be."""

    def __init__(self, path: Path, ids: NDArray[np.int32]) -> None:
        self.stimuli, self.ids = Stimuli(path, allowed_ids=ids), ids

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        """Some of them."""
        return self.stimuli.images(self.ids[rows])


def brain_scores(
    cfg: Config, kept: Mapping[str, Kept], image_ids: NDArray[np.int32], device: torch.device
) -> tuple[Scores, dict[str, dict[str, Any]]]:
    """Correlations over all voxels (N,) by column, and a summary of every ROI by column.

    Args:
        cfg: of the run.
        kept: features of images and stimuli by name of layer, images in the order of the ids.
        image_ids: (N,).
        device: where the networks run.

    Raises:
        UserError: voxels that are not prepared, or no responses to one of the images.
    """
    columns: Scores = {}
    summaries: dict[str, dict[str, Any]] = {}
    for name, one in kept.items():
        images, stimuli = _by_roi(cfg, encoded_layers(cfg.protocol)[name], one, image_ids, device)
        columns[BRAIN + name] = next(iter(images.values())).per_image
        summaries[BRAIN + name] = {
            roi: _summary(found, stimuli[roi], cfg.protocol.n_boot) for roi, found in images.items()
        }
    return columns, summaries


def _summary(found: BrainCorrelation, seen: BrainCorrelation, n_boot: int) -> dict[str, Any]:
    """Mean and interval of the images, and what there is to be reached: by the images seen, and at all."""
    interval = bootstrap_interval(found.per_image, n_boot)
    return {
        "mean": interval.mean, "lo": interval.lo, "hi": interval.hi, "n": interval.n, "seen": seen.mean,
        "ceiling": found.ceiling, "n_voxels": found.n_voxels,
    }  # fmt: skip


def _by_roi(
    cfg: Config, measure: Measure, kept: Kept, image_ids: NDArray[np.int32], device: torch.device
) -> tuple[Found, Found]:
    """Correlations of images and of stimuli, by ROI, over all folds."""
    subject, training = open_subject(cfg), TrainingImages(cfg)
    fold_N = np.array([training.fold_of(int(image_id)) for image_id in image_ids])
    by_fold: list[tuple[Found, Found]] = []
    order = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
    for rows in order:
        fold = int(fold_N[rows[0]])
        encoder = Encoder.fit(
            training_features(cfg, training, fold, measure, device), mean_betas(subject, training.ids(fold))
        )
        measured, rois = mean_betas(subject, image_ids[rows]), subject.inner_rois
        ceilings = _ceilings(subject, encoder, image_ids[rows])
        by_fold.append(
            (
                brain_correlation(encoder, kept.images[rows], measured, rois, ceilings),
                brain_correlation(encoder, kept.stimuli[rows], measured, rois),
            )
        )
    images, stimuli = zip(*by_fold, strict=True)
    return _over_folds(images, order), _over_folds(stimuli, order)


def training_features(
    cfg: Config, training: TrainingImages, fold: int, measure: Measure, device: torch.device
) -> NDArray[np.float32]:
    """Features (N, D) of a fold's training images, read from ``paths.cache`` or computed and written there."""
    shown, weights = Shown(training.path, training.ids(fold)), Judge(cfg.protocol).weights
    found = digits_of(measure.view.network, weights)
    key = sha256_json([shown.stimuli.hash, shown.ids.tolist(), asdict(measure.view), measure.layer, found])
    path = Path(cfg.paths.cache) / "stimulus_features" / f"{measure.view.network}-training-{key}.h5"
    layers = (measure.layer,)
    made = cached(path, layers, lambda: features(shown, measure.view, weights, device, layers))
    return np.asarray(made[measure.layer].numpy(), np.float32)


def _ceilings(subject: Subject, encoder: Encoder, image_ids: NDArray[np.int32]) -> dict[str, float]:
    """Ceilings by ROI: from repeats where all images have as many, else from the voxels' ncsnr; else none is known."""
    rows = subject.rows_of(image_ids)
    shown, counts = np.unique(subject.image_id[rows], return_counts=True)
    if len(shown) and counts.min() == counts.max() >= 2:
        rows = rows[np.argsort(subject.image_id[rows], kind="stable")]
        trials = encoder.scaler.transform(subject.voxels(rows))
        return ceilings_of(subject.inner_rois, betas_NRV=trials.reshape(len(shown), counts[0], -1))
    if subject.ncsnr is not None:
        return ceilings_of(subject.inner_rois, ncsnr_V=subject.ncsnr, n_trials=counts)
    return {}


def _over_folds(by_fold: tuple[Found, ...], order: list[NDArray[np.intp]]) -> Found:
    """One result of those of all folds, images back at their places, ceilings averaged over images."""
    sizes, place = [len(rows) for rows in order], np.argsort(np.concatenate(order))
    made = {}
    for roi, first in by_fold[0].items():
        per_image = np.concatenate([part[roi].per_image for part in by_fold])[place]
        ceilings = [part[roi].ceiling for part in by_fold]
        known = [ceiling for ceiling in ceilings if ceiling is not None]
        ceiling = float(np.average(known, weights=sizes)) if len(known) == len(by_fold) else None
        made[roi] = BrainCorrelation(per_image, float(per_image.mean()), ceiling, first.n_voxels)
    return made


def voxel_ceiling(cfg: Config) -> dict[str, Any] | None:
    """Return what could be explained of the voxels: the share of variance of responses to the images of ``cfg.part``.

    Responses are means over the trials of an image. Median and 95th percentile (``high``) over voxels, number of
    voxels, mean number of trials. None where voxels are not prepared, or no signal-to-noise ratio of them is known.
    """
    try:
        subject = open_subject(cfg)
    except UserError:
        return None  # images made elsewhere are scored without voxels
    if subject.ncsnr is None:
        return None
    _, trials = np.unique(subject.image_id[np.isin(subject.image_id, part_ids(cfg))], return_counts=True)
    if not len(trials):
        return None
    share_V = noise_ceiling(subject.ncsnr, trials)
    median, high = (float(np.quantile(share_V, q)) for q in (0.5, 0.95))
    return {"median": median, "high": high, "n_voxels": len(share_V), "n_trials": float(trials.mean())}


def brain_lines(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Summaries by column and ROI as text, one line each."""
    lines = []
    for column, by_roi in summaries.items():
        width = max(20, *(len(f"{column} {roi}") for roi in by_roi))
        for roi, one in by_roi.items():
            ceiling = "unknown" if one["ceiling"] is None else f"{one['ceiling']:.4f}"
            lines.append(
                f"  {f'{column} {roi}':<{width}} {one['mean']:7.4f}  [{one['lo']:.4f}, {one['hi']:.4f}]  up    "
                f"the images seen {one['seen']:.4f}, ceiling {ceiling}, {one['n_voxels']} voxels"
            )
    return lines
