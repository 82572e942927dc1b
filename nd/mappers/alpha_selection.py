"""Alpha selection: the penalty of every target column, by the squared error of held-out images.

Squared error and not correlation, because predictions are used for their size as well as for their direction: z starts
the sampler, and guidance minimises a squared error.

Shapes: n held-out images, P target columns, K columns of a block, A penalties.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.mappers.base import Group
from nd.mappers.crossvalidation import CrossValidation
from nd.mappers.validation import ValidationScores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlphaSelection:
    """Penalties chosen.

    Attributes:
        alphas: those tried, rising.
        best: (P,) place in `alphas` of each column's penalty.
        correlation: (P,) float32 of held-out predictions under it with their truths.
        details: penalties and scores as plain JSON values.
    """

    alphas: list[float]
    best: NDArray[np.intp]
    correlation: NDArray[np.float32]
    details: dict[str, Any]


@dataclass(frozen=True)
class GroupSelection:
    """Penalties chosen for one group's columns, with their scores and the errors (A,) of all penalties."""

    group: Group
    best: Tensor  # (K,) all columns of the group
    scores: ValidationScores
    errors: Tensor

    def unexplained(self) -> Tensor:
        """Return the share of the truths' size that one penalty for the whole group leaves, (A,)."""
        return self.errors / torch.as_tensor(self.scores.total_square).clamp(min=1e-30)

    def details(self, alphas: Sequence[float], per_column: bool) -> dict[str, Any]:
        """Return penalties and scores as plain JSON values."""
        counts = torch.bincount(self.best, minlength=len(alphas)).tolist()
        chosen = {"columns_per_alpha": counts} if per_column else {"alpha": alphas[int(self.best[0])]}
        return {
            "name": self.group.name,
            "n_columns": len(self.best),
            **chosen,
            "unexplained": [round(float(value), 6) for value in self.unexplained()],
            "scores": self.scores.summary(),
        }


def select_alphas(
    held_out: CrossValidation, groups: Sequence[Group], alphas: list[float], per_column: bool
) -> AlphaSelection:
    """Return one penalty for each group of columns, or one for each column.

    Warns where the best one lies at an end of the list.

    Args:
        held_out: trials under all of `alphas`.
        groups: cover all columns, in order.
        alphas: penalties, rising.
        per_column: whether every column has its own.
    """
    pick = select_for_columns if per_column else select_for_group
    found = [pick(held_out, group) for group in groups]
    scores = found[0].scores
    for other in found[1:]:
        scores = scores.merge(other.scores)
    described = [one.details(alphas, per_column) for one in found]
    _warn_at_edge(alphas, found)
    return AlphaSelection(
        alphas=alphas,
        best=torch.cat([one.best for one in found]).cpu().numpy(),
        correlation=scores.column_correlation()[0].cpu().numpy(),
        details={"alphas": alphas, "groups": described, "scores": scores.summary()},
    )


def select_for_group(held_out: CrossValidation, group: Group) -> GroupSelection:
    """Return the penalty with the smallest squared error over a group's columns; only its predictions are made."""
    only = held_out.n_penalties == 1
    errors = torch.zeros(1) if only else held_out.squared_error(group)
    best, scores = int(errors.argmin()), ValidationScores()
    for held in held_out.blocks(group, at=best):
        held.add_to(scores)
    errors = torch.as_tensor(scores.squared_error) if only else errors
    return GroupSelection(group, torch.full((group.stop - group.start,), best), scores, errors)


def select_for_columns(held_out: CrossValidation, group: Group) -> GroupSelection:
    """Return for each column of a group the penalty with the smallest squared error."""
    errors, best, scores = [], [], ValidationScores()
    for held in held_out.blocks(group):
        errors_AK = held.squared_error()
        best_K = errors_AK.argmin(0)
        held.add_to(scores, best_K)
        errors.append(errors_AK.sum(1))
        best.append(best_K.cpu())
    return GroupSelection(group, torch.cat(best), scores, torch.stack(errors).sum(0))


def _warn_at_edge(alphas: list[float], groups: Sequence[GroupSelection]) -> None:
    """Say so when a wider list of penalties might do better; where nothing can be decoded, none would."""
    last = len(alphas) - 1
    at_end: dict[str, str] = {}
    for one in groups:
        if last and float(one.unexplained().min()) < 1:
            at_end |= {
                f"{one.group.name} ({alphas[end]:g})": f"{share:.0%} of the columns"
                for end in (0, last)
                if (share := float((one.best == end).double().mean())) > 0.5
            }
    if at_end:
        log.warning("the best of mapper.alphas lies at the end of the list for %s; a wider list may do better", at_end)
