"""How varied the decoded features of a table's methods are, beside the true ones of the same test images.

Nothing is decoded here: finished predict runs and target stores are read; what is no longer there is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nd.errors import UserError
from nd.files import open_h5
from nd.metrics.diversity import Diversity, diversity
from nd.runs.folder import RunFolder
from nd.runs.identity import reads_predictions
from nd.tables.specs import Entry

log = logging.getLogger(__name__)
MOST_NUMBERS = 100_000  # of a target per image: 1,000 images, decoded and true, are 800 MB


@dataclass(frozen=True)
class Decoded:
    """The diversity of one target's predictions, and the rows whose images were made from them."""

    labels: tuple[str, ...]
    subject: str
    target: str
    diversity: Diversity


def diversities_of(entries: Sequence[Entry]) -> list[Decoded]:
    """Return the diversity of what was decoded for the rows with role ``method``, rows that share it together."""
    from nd.targets.store import store_path  # loads torch, which a table without a panel does not need

    rows: dict[tuple[Path, str], list[Entry]] = {}
    for entry in entries:
        if entry.row.role == "method" and reads_predictions(entry.cfg):
            for target in entry.cfg.method.targets:
                rows.setdefault((RunFolder.open(entry.cfg, "predict").path, target), []).append(entry)
    found = []
    for (folder, target), sharing in rows.items():
        first = sharing[0]
        try:
            got = decoded_diversity(folder / "predictions.h5", store_path(first.cfg, target), target)
        except UserError as error:
            log.warning("the diversity of %s of %s is left out: %s", target, first.label, error)
            continue
        found.append(Decoded(tuple(entry.row.label for entry in sharing), first.subject, target, got))
    return found


def decoded_diversity(predictions: Path, store: Path, target: str) -> Diversity:
    """Compare the predictions of a target with its true values for the same images, each image once.

    Raises:
        UserError: a file that is missing or lacks the target or an image; fewer than two images; too many numbers.
    """
    from nd.generate.inputs import PredictedFeatures
    from nd.targets.store import TargetStore

    true = TargetStore(store)
    if true.size > MOST_NUMBERS:
        raise UserError(
            f"{true.size} numbers an image are more than the {MOST_NUMBERS} that are held in memory for it."
        )
    with open_h5(predictions) as file:
        ids = np.unique(file["image_id"][:])
    return diversity(PredictedFeatures(predictions).rows(target, ids.tolist()), true.rows(ids))
