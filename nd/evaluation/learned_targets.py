"""The true values that decoded ones are held against: those that their mapper learned from.

The weights that features are extracted with may be replaced, or damaged, after images were made. What has been decoded
is then still a prediction of the former features, whose store the training has recorded.
"""

from __future__ import annotations

from pathlib import Path

from nd.config import Config
from nd.runs.folder import RunFolder
from nd.targets.store import store_of, store_path


def learned_store(cfg: Config, target: str) -> Path:
    """Return where the store of the features lies that a target's mapper was trained on.

    Args:
        cfg: of a run that reads predictions.
        target: one that is decoded in it.

    Returns:
        The place, whether or not anything is there; where no finished training is, that for the present weights.

    Raises:
        UserError: the record of the training is damaged; without one, weights or stimuli are absent.
    """
    training = RunFolder.open(cfg.with_target(target), "train")
    recorded = training.manifest["inputs"].get(f"target {target}", "") if training.done else ""
    return store_of(cfg, target, recorded) if recorded else store_path(cfg, target)
