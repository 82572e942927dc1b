"""How many voxels a column uses and under which penalty, where FastL2LiR is to choose them: those that predict best.

Both are chosen together, for the whole target, by the squared error of the validation images: too many voxels under a
small penalty follow the noise (worst where there are about as many voxels as images), and what a data set allows no
other says. To try everything on every column would cost several fits, so a sample of the columns stands for all.

Shapes: N training images, M validation images, V voxels, K sampled columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.base import Columns, FoldData
from nd.mappers.normal_equations import Selecting, Sharing, Solution, bordered
from nd.mappers.statistics import column_statistics, standardised

SAMPLED = 64  # columns, evenly spaced: of every layer some


@dataclass(frozen=True)
class Tried:
    """A setting, and the share of the validation targets' variance that it leaves, mean of the sampled columns."""

    n_feat: int
    penalty: float
    unexplained: float


@dataclass(frozen=True)
class Choice:
    """What was tried, and the best of it."""

    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """Return the setting that leaves least."""
        return min(self.tried, key=lambda one: one.unexplained)

    @property
    def at_end(self) -> bool:
        """Whether the best penalty is the smallest or largest of several, so that one beyond may do better."""
        penalties = {one.penalty for one in self.tried}
        return len(penalties) > 1 and self.best.penalty in (min(penalties), max(penalties))

    def details(self) -> dict[str, object]:
        """Return everything as plain JSON values."""
        tried = [asdict(one) for one in self.tried]
        return {"chosen": asdict(self.best) | {"at_end": self.at_end}, "tried": tried}


def choose(
    data: FoldData, n_feats: Sequence[int], penalties: Sequence[float], device: torch.device | None = None
) -> Choice:
    """Try every number of voxels under every penalty on the validation images.

    Args:
        data: one fold.
        n_feats: numbers of voxels; of those that reach V one is tried, as all voxels.
        penalties: above 0.
        device: where the products run, by default the CPU.

    Raises:
        UserError: there are no validation images, or a setting cannot be solved in double precision.
    """
    if not len(data.val_ids):
        raise UserError(
            "mapper.n_feat=0 and mapper.penalty=0 choose on validation images, of which there are none. Give both, or"
            " keep some images (data.n_val)."
        )
    scaler, device = Scaler.fit(data.train_voxels), device or torch.device("cpu")
    train_NV, val_MV = (
        torch.from_numpy(scaler.transform(voxels)).to(device) for voxels in (data.train_voxels, data.val_voxels)
    )
    places = np.unique(np.linspace(0, data.targets.size - 1, SAMPLED).astype(int))
    train_NK, val_MK = (sampled(data.targets, ids, places) for ids in (data.train_ids, data.val_ids))
    mean_K, std_K = column_statistics(train_NK)
    known_NK, wanted_MK = (
        torch.from_numpy(standardised(values, mean_K, std_K)).to(device) for values in (train_NK, val_MK)
    )
    tried = tuple(
        Tried(min(n_feat, train_NV.shape[1]), penalty, unexplained(solution, val_MV, wanted_MK))
        for n_feat, penalty, solution in solutions(train_NV, known_NK, n_feats, penalties)
    )
    return Choice(tried)


def sampled(targets: Columns, ids: NDArray[np.int32], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return some columns (N, K) float32 of some images."""
    return np.concatenate([targets.columns(ids, int(place), int(place) + 1) for place in places], axis=1)


def solutions(
    train_NV: Tensor, known_NK: Tensor, n_feats: Sequence[int], penalties: Sequence[float]
) -> Iterator[tuple[int, float, Solution]]:
    """Yield the coefficients under every setting; the products of the voxels are made once where they can be."""
    n_voxels = train_NV.shape[1]
    few = sorted({n_feat for n_feat in n_feats if n_feat < n_voxels})
    x = bordered(train_NV)
    if few:
        selecting = Selecting(x, few[0], penalties[0])
        for n_feat in few:
            for penalty in penalties:
                selecting.use(n_feat, penalty)
                yield n_feat, penalty, selecting.solve(known_NK)
    if any(n_feat >= n_voxels for n_feat in n_feats):
        for penalty in penalties:
            yield n_voxels, penalty, Sharing(x, penalty).solve(known_NK)


def unexplained(solution: Solution, val_MV: Tensor, wanted_MK: Tensor) -> float:
    """Return the share of the variance of z-scored targets (M, K) that predictions leave, mean of the columns."""
    val_MV, wanted_MK = val_MV.double(), wanted_MK.double()
    if solution.voxels is None:
        predicted_MK = val_MV @ solution.weights.T
    else:
        columns = zip(solution.voxels, solution.weights, strict=True)
        predicted_MK = torch.stack([val_MV[:, voxels] @ weights for voxels, weights in columns], dim=1)
    left_K = (predicted_MK + solution.bias - wanted_MK).square().sum(0)
    return float((left_K / wanted_MK.square().sum(0).clamp(min=1e-12)).mean())
