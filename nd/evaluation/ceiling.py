"""How much of a subject's voxels could be explained at all: the noise ceiling of what a table's methods decode from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nd.data.prepared import open_subject
from nd.errors import UserError
from nd.generate.inputs import part_ids
from nd.metrics.noise_ceiling import noise_ceiling
from nd.tables.specs import Entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VoxelCeiling:
    """Median and 95th percentile over voxels of the explainable share of variance of responses to the test images."""

    subject: str
    median: float
    high: float
    n_voxels: int
    n_trials: float  # the mean number averaged for a test image


def ceilings_of(entries: Sequence[Entry]) -> list[VoxelCeiling]:
    """Return the ceiling of every subject whose voxels are there and have a known signal-to-noise ratio."""
    found = []
    for entry in {entry.subject: entry for entry in entries}.values():
        try:
            ceiling = voxel_ceiling(entry)
        except UserError as error:
            log.warning("the noise ceiling of %s is left out: %s", entry.subject, error)
            continue
        found += [ceiling] if ceiling else []
    return found


def voxel_ceiling(entry: Entry) -> VoxelCeiling | None:
    """Return one subject's ceiling in the trials that are averaged; None where no ratio is known.

    Raises:
        UserError: the prepared files are missing or of no use.
    """
    subject = open_subject(entry.cfg)
    if subject.ncsnr is None:
        return None
    _, trials = np.unique(subject.image_id[np.isin(subject.image_id, part_ids(entry.cfg))], return_counts=True)
    share_V = noise_ceiling(subject.ncsnr, trials)
    median, high = (float(np.quantile(share_V, q)) for q in (0.5, 0.95))
    return VoxelCeiling(entry.subject, median, high, len(share_V), float(trials.mean()))
