"""Linear regression of every target column on the voxels that correlate most with it (FastL2LiR).

Voxels and target columns are z-scored by statistics of the images fitted on; `nd.mappers.normal_equations` chooses the
`n_feat` voxels of a column and solves for their coefficients and a bias, all under one `penalty`; predictions are given
the column's mean and spread back. Where thousands of images meet a penalty below 1, the choice of voxels is what
regularises. (KamitaniLab/PyFastL2LiR; ReedOnePeck/MindDiffuser@c9773ac:Feature decoding/detail_decoding.py and others.)

Shapes: N images, V voxels, P target columns, Q of them kept, K columns of a block, F voxels of a column.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import MapperConfig
from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.arrays import Scratch, check_memory
from nd.mappers.base import FoldData, blocks
from nd.mappers.linear import Linear, spread_out
from nd.mappers.normal_equations import Solution, columns_together, equation_bytes, normal_equations
from nd.mappers.statistics import column_statistics, standardised
from nd.mappers.validation import ValidationScores
from nd.mappers.voxel_choice import choose

log = logging.getLogger(__name__)


class FastL2LiR(Linear):
    """Regression on the best voxels of each column; z-scores voxels and targets by training statistics."""

    name = "fastl2lir"

    def __init__(self, config: MapperConfig, device: torch.device | None = None) -> None:
        """As of `Linear`. `UserError`: `config.n_feat` or `config.penalty` is negative."""
        if config.n_feat < 0:
            raise UserError(f"mapper.n_feat={config.n_feat}: voxels for each column, 1 or more, are needed; 0: chosen.")
        if config.penalty < 0:
            raise UserError(f"mapper.penalty={config.penalty}: a positive number is needed, or 0 (chosen).")
        super().__init__(config, device)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what `predict` needs, and what is known of each column; float32 but for indices and the mask.

        `voxel_mean`, `voxel_scale` (V,); `target_mean`, `target_std`, `bias` (Q,); the coefficients of z-scored voxels,
        `weights` (Q, V) or, where it takes fewer bytes, `voxels` (Q, F) int32 with `coefficients` (Q, F).
        `validation_correlation` (P,) of the validation images, 0 where a column is flat. Where columns are left out,
        `kept` (P,) uint8 marks the Q others; else Q is P.
        """
        return self._arrays

    def fit(self, data: FoldData, scratch: Path | None = None) -> None:
        """Fit on the training images, score the validation images, and fit on both when `refit` is set.

        Args: as of `Linear.fit`.

        Raises:
            UserError: the equations take more memory than there is, or cannot be solved under this penalty.
        """
        n_voxels = data.train_voxels.shape[1]
        # What an earlier fit has chosen was for its data.
        self.n_feat, self.penalty = self.config.n_feat, self.config.penalty
        if n_voxels < self.n_feat:
            log.warning("mapper.n_feat is %d, but there are %d voxels: all are used", self.n_feat, n_voxels)
        data = self._narrowed(data)
        if not (self.n_feat and self.penalty):
            self._choose(data)
        self._solve(data, data.train_voxels, data.train_ids, scratch)
        of_columns = self._validate(data)
        if self.config.refit:
            ids = np.concatenate([data.train_ids, data.val_ids])
            self._solve(data, np.concatenate([data.train_voxels, data.val_voxels]), ids, scratch)
        self._arrays |= self._widened(of_columns)

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return predicted targets (N, P) float32 of responses (N, V) as measured; `image_ids` make no difference."""
        scaled_NV = self._tensor(self.scaler.transform(voxels_NV))
        predicted_NQ = np.empty((len(voxels_NV), len(self._arrays["bias"])), np.float32)
        for block in blocks(0, predicted_NQ.shape[1], columns_together(*voxels_NV.shape)):
            predicted_NQ[:, block] = self._predicted(scaled_NV, block).cpu().numpy()
        return predicted_NQ if self._kept is None else spread_out(predicted_NQ, self._kept)

    def _choose(self, data: FoldData) -> None:
        """Settle what the settings leave to the validation images."""
        n_feats = [self.n_feat] if self.n_feat else list(self.config.n_feats)
        penalties = [self.penalty] if self.penalty else list(self.config.penalties)
        n_images, n_voxels = data.train_voxels.shape
        needed = equation_bytes(n_images, n_voxels, max(n_feats), self.device.type)
        check_memory(needed, self.device, _advice(n_voxels))
        choice = choose(data, n_feats, penalties, self.device)
        self.n_feat, self.penalty = choice.best.n_feat, choice.best.penalty
        self._details |= choice.details()

    # ---- fitting ---------------------------------------------------------------------------------------------------

    def _solve(self, data: FoldData, voxels: NDArray[np.float32], ids: NDArray[np.int32], scratch: Path | None) -> None:
        """Fill the arrays from some images."""
        n_feat, (n_images, n_voxels), seen = self.n_feat, voxels.shape, self.config.seen_statistics
        of_voxels = np.concatenate([data.train_voxels, data.val_voxels]) if seen == "all" else voxels
        of_columns = ids if seen == "none" else np.concatenate([data.train_ids, data.val_ids])
        scaler = Scaler.fit(of_voxels)
        check_memory(equation_bytes(n_images, n_voxels, n_feat, self.device.type), self.device, _advice(n_voxels))
        equations = normal_equations(self._tensor(scaler.transform(voxels)), n_feat, self.penalty)
        self._arrays = {"voxel_mean": scaler.mean, "voxel_scale": scaler.scale}
        self._arrays |= self._room(data.targets.size, n_voxels, scratch)
        for block in blocks(0, data.targets.size, columns_together(n_images, n_voxels)):
            targets_NK = data.targets.columns(ids, block.start, block.stop)
            scored_MK = targets_NK if seen == "none" else data.targets.columns(of_columns, block.start, block.stop)
            mean_K, std_K = column_statistics(scored_MK)
            standard_NK = torch.from_numpy(standardised(targets_NK, mean_K, std_K))
            self._arrays["target_mean"][block], self._arrays["target_std"][block] = mean_K, std_K
            self._store(equations.solve(standard_NK.to(self.device)), block)
        self._details["n_images"] = n_images

    def _room(self, size: int, n_voxels: int, scratch: Path | None) -> dict[str, NDArray[Any]]:
        """Arrays for the statistics and coefficients of some columns, to be filled."""
        files, n_feat = Scratch(scratch), self.n_feat
        room = {name: np.empty(size, np.float32) for name in ("target_mean", "target_std", "bias")}
        if 2 * n_feat < n_voxels:  # an index and a coefficient for each chosen voxel
            return room | {"voxels": files.array((size, n_feat), np.int32), "coefficients": files.array((size, n_feat))}
        return room | {"weights": files.array((size, n_voxels))}

    def _store(self, solution: Solution, block: slice) -> None:
        """Put the coefficients of a block where they belong."""
        self._arrays["bias"][block] = solution.bias.cpu().numpy()
        weights, chosen = solution.weights.float(), solution.voxels
        if "weights" in self._arrays:
            n_voxels = self._arrays["weights"].shape[1]
            whole_KV = weights if chosen is None else spread_over_voxels(chosen, weights, n_voxels)
            self._arrays["weights"][block] = whole_KV.cpu().numpy()
        else:
            assert chosen is not None, "few voxels are stored only where they were chosen"
            self._arrays["voxels"][block], self._arrays["coefficients"][block] = chosen.cpu(), weights.cpu()

    def _validate(self, data: FoldData) -> dict[str, NDArray[Any]]:
        """Record scores of the validation images relative to the training mean; correlations by column (Q,)."""
        scaled_NV = self._tensor(self.scaler.transform(data.val_voxels))
        groups, overall = [], ValidationScores()
        for group in data.groups:
            scores = ValidationScores()
            for block in blocks(group.start, group.stop, columns_together(*data.train_voxels.shape)):
                mean_K = self._tensor(self._arrays["target_mean"][block])
                true_NK = self._tensor(data.targets.columns(data.val_ids, block.start, block.stop)) - mean_K
                scores.add((self._predicted(scaled_NV, block) - mean_K)[None], true_NK)
            groups.append({"name": group.name, "n_columns": scores.n_columns, "scores": scores.summary()})
            overall = overall.merge(scores)
        self._details |= {"groups": groups, "scores": overall.summary()}
        return {"validation_correlation": overall.column_correlation()[0].float().numpy()}

    # ---- help ------------------------------------------------------------------------------------------------------

    def _predicted(self, scaled_NV: Tensor, block: slice) -> Tensor:
        """Predictions (N, K) of a block of kept columns."""
        if "weights" in self._arrays:
            weights_KV = self._tensor(self._arrays["weights"][block])
        else:
            chosen_KF, coefficients_KF = (
                self._tensor(self._arrays[name][block]) for name in ("voxels", "coefficients")
            )
            weights_KV = spread_over_voxels(chosen_KF.long(), coefficients_KF, scaled_NV.shape[1])
        bias_K, std_K, mean_K = (self._tensor(self._arrays[n][block]) for n in ("bias", "target_std", "target_mean"))
        return (scaled_NV @ weights_KV.T + bias_K) * std_K + mean_K


def spread_over_voxels(chosen_KF: Tensor, coefficients_KF: Tensor, n_voxels: int) -> Tensor:
    """Return coefficients of all voxels (K, V), 0 for those that a column does not use.

    Args:
        chosen_KF: (K, F) int64 voxels of each column.
        coefficients_KF: (K, F) of these.
    """
    return coefficients_KF.new_zeros(len(chosen_KF), n_voxels).scatter_(1, chosen_KF, coefficients_KF)


def _advice(n_voxels: int) -> str:
    return (
        f"mapper=fastl2lir holds the products of {n_voxels} voxels with each other in double precision. Choose fewer"
        " voxels (subject.roi), a smaller mapper.n_feat, or a machine with more memory"
    )
