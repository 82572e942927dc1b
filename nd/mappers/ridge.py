"""Closed-form ridge regression from voxels to a target, its penalty chosen on held-out images.

Every group of columns (each layer of g, or the whole target), or every column, has one penalty: the one with the
smallest squared error on the validation images after fitting on the training images, or, where images are few, over
`folds` folds of all the images it is then fitted on.
Penalties add to the un-normalised Gram matrix of z-scored voxels, as in scikit-learn. Targets come and coefficients go
block by block: neither is ever whole in memory, where a scratch folder is given.

Shapes: N images, V voxels, R components, P target columns, K columns of a block, A penalties.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import MapperConfig
from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.alpha_selection import AlphaSelection, select_alphas
from nd.mappers.arrays import Scratch
from nd.mappers.base import Columns, FoldData, column_blocks
from nd.mappers.crossvalidation import Images, cross_validation
from nd.mappers.linear import Linear, spread_out
from nd.mappers.ridge_solver import SVD, decompose, left_out_share, spread_ratio
from nd.mappers.statistics import voxel_scaler


class Ridge(Linear):
    """Ridge regression; z-scores voxels by training statistics and centres targets by their training mean."""

    name = "ridge"

    def __init__(self, config: MapperConfig, device: torch.device | None = None) -> None:
        """As of `Linear`. `UserError`: `config.alphas` is empty, or not positive."""
        if not config.alphas or min(config.alphas) <= 0:
            raise UserError(f"mapper.alphas={config.alphas}: one or more positive numbers are needed.")
        super().__init__(config, device)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what `predict` needs, and what is known of each column.

        `voxel_mean`, `voxel_scale` (V,), with `voxel_power` `voxel_spread` (V,); `target_mean` (P,), 0 without an
        intercept; `weights` (V, Q) or, where smaller, their factors `directions` (V, R) and `coefficients` (R, Q);
        float32. `validation_correlation` (P,) float32 of the held-out images, 0 where a column is flat; `alpha` (P,)
        float32 where each column has its own. Where columns are left out, `kept` (P,) uint8 marks the Q others; else Q
        is P.
        """
        return self._arrays

    @property
    def voxel_spread(self) -> NDArray[np.float32]:
        """Return what `Mapper.voxel_spread` does. `UserError`: voxels have weights, but it was not recorded."""
        if not self.config.voxel_power:
            return super().voxel_spread
        if "voxel_spread" not in self._arrays:
            raise UserError(
                "this mapper weighs voxels (mapper.voxel_power) and does not record how much they vary, as earlier"
                " versions did not. Remove its run folder and run `nd train` again."
            )
        return self._arrays["voxel_spread"]

    def fit(self, data: FoldData, scratch: Path | None = None) -> None:
        """Choose penalties on held-out images, then fit (on training and validation images when `refit` is set).

        Args: as of `Linear.fit`.

        Raises:
            UserError: there are fewer images than `folds`, or no room on the disk.
        """
        data = self._narrowed(data)
        room, images = Scratch(scratch), _images(data, with_validation=self.config.refit or not self.config.folds)
        choice = self._choose(data, images, room)
        if not self.config.refit:
            images = images.first(len(data.train_ids))
        # Weights of voxels are part of the scale that predictions divide by.
        spread = {"voxel_spread": Scaler.fit(images.voxels).scale} if self.config.voxel_power else {}
        scaler = voxel_scaler(data, images.voxels, images.ids, self.config)
        svd = decompose(self._tensor(scaler.transform(images.voxels, out=images.voxels)))
        weights, of_columns = self._solve(data.targets, images.ids, svd, choice, room)
        of_columns |= {"validation_correlation": choice.correlation}
        if self.config.alpha_per == "column":
            of_columns["alpha"] = np.asarray(choice.alphas, np.float32)[choice.best]
        of_voxels = {"voxel_mean": scaler.mean, "voxel_scale": scaler.scale, **spread}
        self._arrays = {**of_voxels, **weights, **self._widened(of_columns)}
        self._details = {**choice.details, "n_images": len(images.ids), "n_components": len(svd.values)}

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return predicted targets (N, P) float32 of responses (N, V) as measured; `image_ids` make no difference."""
        arrays = self._arrays
        inner = self.scaler.transform(voxels_NV)
        if "directions" in arrays:
            inner = inner @ arrays["directions"]
        outer = arrays["coefficients"] if "directions" in arrays else arrays["weights"]
        predicted_NP = np.empty((len(inner), outer.shape[1]), np.float32)
        for block in column_blocks(0, outer.shape[1], len(outer)):
            # A copy: products would go through the pages of a mapped file in an order that does not suit it.
            predicted_NP[:, block] = inner @ np.ascontiguousarray(outer[:, block])
        if self._kept is not None:
            predicted_NP = spread_out(predicted_NP, self._kept)
        predicted_NP += arrays["target_mean"]
        return predicted_NP

    def _choose(self, data: FoldData, images: Images, room: Scratch) -> AlphaSelection:
        """The trials go out of memory with this function: the fit needs it."""
        held_out = cross_validation(self.config, data, images, self.device, room)
        return select_alphas(held_out, data.groups, sorted(self.config.alphas), self.config.alpha_per == "column")

    def _solve(
        self, targets: Columns, ids: NDArray[np.int32], svd: SVD, choice: AlphaSelection, room: Scratch
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[Any]]]:
        """Weights, whole or as factors, whichever hold fewer numbers; and the means of the targets."""
        (n_voxels, n_components), size = svd.right.shape, targets.size
        whole = n_voxels * size <= n_components * (n_voxels + size)
        solved, means = room.array((n_voxels if whole else n_components, size)), np.zeros(size, np.float32)
        solver = Solver(self.config, svd, choice.alphas)
        for block in column_blocks(0, size, len(ids)):
            targets_NK = self._tensor(targets.columns(ids, block.start, block.stop))
            mean_K = targets_NK.double().mean(0).float()
            targets_NK -= mean_K
            solved_RK = solver.solve(targets_NK, torch.from_numpy(choice.best[block]).to(self.device))
            solved[:, block] = (svd.right @ solved_RK if whole else solved_RK).cpu().numpy()
            if self.config.intercept:
                means[block] = mean_K.cpu().numpy()
        if whole:
            return {"weights": solved}, {"target_mean": means}
        return {"directions": svd.right.cpu().numpy(), "coefficients": solved}, {"target_mean": means}


class Solver:
    """Coefficients of the components, of targets whose columns have each their penalty."""

    def __init__(self, config: MapperConfig, svd: SVD, alphas: list[float]) -> None:
        """Prepare every penalty that a column may have: `alphas`, rising."""
        self.svd = svd
        alphas_A1 = torch.tensor(alphas, dtype=torch.float64, device=svd.values.device)[:, None]
        self.gains_RA = svd.gain(alphas_A1).float().T.contiguous()
        rescaled = config.rescale == "train"
        self.left_out_AN = left_out_share(svd, alphas_A1, config.intercept) if rescaled else None

    def solve(self, targets_NK: Tensor, best_K: Tensor) -> Tensor:
        """Return coefficients (R, K) of centred targets (N, K), under the penalty at each column's place `best_K`."""
        solved_RK = self.svd.components(targets_NK).mul_(self.gains_RA.index_select(1, best_K))
        if self.left_out_AN is not None:
            solved_RK *= spread_ratio(self.svd, self.left_out_AN[best_K].T, targets_NK, solved_RK)
        return solved_RK


def _images(data: FoldData, with_validation: bool) -> Images:
    """Copies of the training images' ids and responses, and then the validation images'."""
    if not with_validation:
        return Images(data.train_ids, data.train_voxels.copy(), data.train_order)
    ids, voxels = (data.train_ids, data.val_ids), (data.train_voxels, data.val_voxels)
    known = data.train_order is not None and data.val_order is not None
    order = np.concatenate([data.train_order, data.val_order]) if known else None
    return Images(np.concatenate(ids), np.concatenate(voxels), order)
