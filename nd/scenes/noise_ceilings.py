"""Signal-to-noise ratios of simulated voxels, drawn from what was measured in the Natural Scenes Dataset (NSD).

Measured: nine quantiles of ncsnr per subject and region (nsd_ncsnr.json, with its source). Every simulated subject
takes those of one NSD subject, so that subjects differ as NSD's do.

Assumed: an area of the simulation is the region of the same name, face_like is OFA with both FFA, and place_like is OPA
with PPA, each region weighing by its voxels. Between quantiles the ratio is interpolated linearly, and there are no
tails beyond the first and last percentile. Neighbouring voxels do not resemble each other in it. The source lists
voxels of higher areas from .2 on; the weaker ones, which nsdgeneral holds too, are missing here as well, so higher
areas are somewhat too good. Below LEAST, where a voxel is all noise, it is set to LEAST.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).with_name("nsd_ncsnr.json")
LEAST = 0.05  # trials are signal + noise / ncsnr, which must stay finite
# Any other name takes the quantiles of the first.
NSD_SUBJECT = {"subj01": "subj01", "subj02": "subj02", "subj03": "subj05", "subj04": "subj07"}


@cache
def measured() -> dict[str, Any]:
    """The table: probabilities, regions of each area, and of each NSD subject quantiles and voxels by region."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def draw_ncsnr(rng: np.random.Generator, subject: str, areas: NDArray[np.str_]) -> NDArray[np.float32]:
    """Draw the signal-to-noise ratio of every voxel.

    Args:
        rng: decides the voxels' ranks.
        subject: name of the simulated subject.
        areas: (V,) name of each voxel's area.

    Returns:
        (V,) float32, at least LEAST.
    """
    region_rank, rank = rng.random(len(areas)), rng.random(len(areas))
    out = np.empty(len(areas), np.float32)
    for area in np.unique(areas):
        mine = areas == area
        out[mine] = _quantile(NSD_SUBJECT.get(subject, "subj01"), str(area), region_rank[mine], rank[mine])
    return np.maximum(out, np.float32(LEAST))


def _quantile(nsd_subject: str, area: str, region_rank: NDArray[Any], rank: NDArray[Any]) -> NDArray[np.float64]:
    """Ratios at these ranks, each in a region chosen by lot in proportion to its voxels."""
    regions = [measured()["subjects"][nsd_subject][name] for name in measured()["rois_of_area"][area]]
    ends = np.cumsum([region["voxels"] for region in regions])
    chosen = np.searchsorted(ends / ends[-1], region_rank, side="right")
    by_region = [np.interp(rank, measured()["probabilities"], region["quantiles"]) for region in regions]
    return np.choose(chosen, by_region)
