"""Scores of validation images as a network predicts them, without any reconstruction.

Shapes: N validation images, P numbers of a flattened target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nd.data.epoch import processes
from nd.mappers.base import Columns
from nd.mappers.training.scale import BLOCK_NUMBERS, TargetScale
from nd.mappers.validation import ValidationScores

Held = tuple[str, Tensor, dict[str, Tensor]]  # subject, image ids (N,), prediction (N, P) by target


def from_all_processes(held: Sequence[Held]) -> list[Held]:
    """The predictions of every process, in the order of processes: that of the images."""
    if processes()[1] == 1:
        return list(held)
    everyone: list[list[Held]] = [[] for _ in range(processes()[1])]
    dist.all_gather_object(everyone, list(held))
    return [part for one in everyone for part in one]


def target_scores(predicted_NP: Tensor, ids: Tensor, truth: Columns, scale: TargetScale) -> dict[str, float]:
    """Scores of one subject's predictions of one target, relative to the training mean as for the linear mappers."""
    scores, order = ValidationScores(), ids.numpy()
    step = max(1, BLOCK_NUMBERS // max(1, len(order)))
    for start in range(0, truth.size, step):
        columns = slice(start, min(start + step, truth.size))
        mean_K = torch.from_numpy(scale.mean[columns])
        true_NK = torch.from_numpy(truth.columns(order, columns.start, columns.stop)) - mean_K
        scores.add((predicted_NP[:, columns] - mean_K)[None], true_NK)
    return scores.summary()


def score_held(
    held: Sequence[Held], truths: dict[str, Columns], scales: dict[str, TargetScale]
) -> dict[str, dict[str, float]]:
    """Scores by target, averaged over subjects."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in truths}
    for subject in dict.fromkeys(name for name, _, _ in held):
        mine = [(ids, predicted) for name, ids, predicted in held if name == subject and len(ids)]
        ids = torch.cat([ids for ids, _ in mine])
        for target, truth in truths.items():
            predicted = torch.cat([values[target] for _, values in mine])
            found[target].append(target_scores(predicted, ids, truth, scales[target]))
    return {target: _mean(rows) for target, rows in found.items()}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0]}
