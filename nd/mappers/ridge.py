"""Closed-form ridge regression from voxels to a target, its penalty chosen on the validation images.

Every group of columns (each layer of g, or the whole target) has one penalty: the one with the smallest squared error
on the validation images after fitting on the training images, or, where images are few, over `folds` folds of all the
images it is then fitted on. Squared error and not correlation, because predictions
are used for their size as well as for their direction: z starts the sampler, and guidance minimises a squared error.
Penalties add to the un-normalised Gram matrix of z-scored voxels, as in scikit-learn.

Shapes: N images, V voxels, R components, P target columns, K columns of a block, A penalties.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.base import Columns, FoldData, Group
from nd.mappers.spectrum import Spectrum, decompose
from nd.mappers.validation import ValidationScores
from nd.mappers.voxel_weights import leading_components, voxel_weights
from nd.schema import MapperConfig

log = logging.getLogger(__name__)

BLOCK_NUMBERS = 1 << 23  # numbers of one block of targets: 32 MB in float32


@dataclass(frozen=True)
class Trial:
    """A fit on some images, and what it predicts others from, under every penalty."""

    spectrum: Spectrum
    fitted_ids: NDArray[np.int32]
    held_ids: NDArray[np.int32]
    projected: Tensor  # (A, N, R)


class Ridge:
    """Ridge regression; z-scores voxels by training statistics and centres targets by their training mean."""

    name = "ridge"

    def __init__(self, config: MapperConfig, device: torch.device | None = None) -> None:
        """config: the mapper group; device: where the matrix products run, by default the CPU."""
        if not config.alphas or min(config.alphas) <= 0:
            raise UserError(f"mapper.alphas={config.alphas}: one or more positive numbers are needed.")
        self.config = config
        # Decompositions need float64, which Metal does not have.
        self.device = device if device is not None and device.type == "cuda" else torch.device("cpu")
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._details: dict[str, Any] = {}

    @classmethod
    def restore(cls, config: MapperConfig, state: dict[str, NDArray[np.float32]], details: dict[str, Any]) -> Ridge:
        """A fitted mapper from what `state` and `details` gave."""
        mapper = cls(config)
        mapper._arrays, mapper._details = state, details
        return mapper

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Voxel statistics, target mean, and weights (V, P) or, where smaller, their factors (V, R) and (R, P)."""
        return self._arrays

    def details(self) -> dict[str, Any]:
        """Chosen penalties and validation scores, of every penalty and of the chosen ones."""
        return self._details

    def fit(self, data: FoldData) -> None:
        """Choose penalties on images held out from fitting, then fit (on both parts when `refit` is set)."""
        voxels, ids = data.train_voxels, data.train_ids
        if self.config.refit:
            voxels = np.concatenate([voxels, data.val_voxels])
            ids = np.concatenate([ids, data.val_ids])
        chosen = self._choose(data, self._trials(data, voxels, ids))
        scaler = self._scaler(data, voxels, ids)
        spectrum = self._decompose(scaler, voxels)
        mean, coefficients = self._solve(data, ids, spectrum, chosen)
        self._arrays = {"voxel_mean": scaler.mean, "voxel_scale": scaler.scale, "target_mean": mean}
        self._arrays |= _compact(spectrum.right.cpu(), coefficients)
        self._details |= {"n_images": len(ids), "n_components": len(spectrum.values)}

    @property
    def scaler(self) -> Scaler:
        """Z-scores voxels (and multiplies them by their weights, where `voxel_power` gave them some)."""
        return Scaler(mean=self._arrays["voxel_mean"], scale=self._arrays["voxel_scale"])

    def predict(self, voxels_NV: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predicted targets (N, P) float32 of responses as measured."""
        arrays = self._arrays
        scaled_NV = self.scaler.transform(voxels_NV)
        if "weights" in arrays:
            weighted_NP = scaled_NV @ arrays["weights"]
        else:
            weighted_NP = (scaled_NV @ arrays["directions"]) @ arrays["coefficients"]
        return np.asarray(weighted_NP + arrays["target_mean"], np.float32)

    # ---- choosing --------------------------------------------------------------------------------------------------

    def _trials(self, data: FoldData, voxels: NDArray[np.float32], ids: NDArray[np.int32]) -> list[Trial]:
        """One trial on the validation images, or one for each of `folds` folds of the images to be fitted on."""
        if not self.config.folds:
            return [self._trial(data, data.train_voxels, data.train_ids, data.val_voxels, data.val_ids)]
        if self.config.folds > len(ids):
            raise UserError(f"mapper.folds={self.config.folds} folds cannot be cut from {len(ids)} images; use fewer.")
        rank = np.argsort(np.argsort(ids))  # every folds-th image, whatever the order of the rows
        folds = [rank % self.config.folds == k for k in range(self.config.folds)]
        return [self._trial(data, voxels[~held], ids[~held], voxels[held], ids[held]) for held in folds]

    def _trial(
        self,
        data: FoldData,
        voxels: NDArray[np.float32],
        ids: NDArray[np.int32],
        held_voxels: NDArray[np.float32],
        held_ids: NDArray[np.int32],
    ) -> Trial:
        scaler = self._scaler(data, voxels, ids)
        spectrum = self._decompose(scaler, voxels)
        gains_AR = torch.stack([spectrum.gain(alpha) for alpha in sorted(self.config.alphas)]).float()
        held_NR = self._tensor(scaler.transform(held_voxels)) @ spectrum.right
        return Trial(spectrum, ids, held_ids, held_NR * gains_AR[:, None])

    def _choose(self, data: FoldData, trials: list[Trial]) -> dict[str, float]:
        """The penalty of every group; records all scores of the images held out."""
        alphas = sorted(self.config.alphas)
        chosen, groups, overall = {}, [], None
        for group in data.groups:
            scores = self._validate(data, trials, group)
            best = int(scores.unexplained().argmin())
            chosen[group.name] = alphas[best]
            groups.append(_group_details(group, alphas, best, scores))
            overall = scores.at(best) if overall is None else overall.merge(scores.at(best))
        assert overall is not None, "a target has at least one group"
        _warn_at_edge(alphas, groups)
        self._details = {"alphas": alphas, "groups": groups, "scores": overall.summary()}
        return chosen

    def _validate(self, data: FoldData, trials: list[Trial], group: Group) -> ValidationScores:
        """Scores over the held-out images of all trials, each relative to the mean of its trial's fitted images."""
        scores = ValidationScores()
        for start, stop in _blocks(group, sum(len(trial.held_ids) for trial in trials) + len(data.train_ids)):
            parts = [self._held_out(data, trial, start, stop) for trial in trials]
            predicted_ANK, true_NK = (torch.cat(both, dim=-2) for both in zip(*parts, strict=True))
            scores.add(predicted_ANK, true_NK)
        return scores

    def _held_out(self, data: FoldData, trial: Trial, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Predictions (A, N, K) and truths (N, K) of a trial's held-out images."""
        fitted_NK = self._columns(data.targets, trial.fitted_ids, start, stop)
        mean_K = fitted_NK.mean(0)
        predicted = trial.projected.flatten(0, 1) @ trial.spectrum.components(fitted_NK - mean_K)
        true_NK = self._columns(data.targets, trial.held_ids, start, stop) - mean_K
        return predicted.unflatten(0, trial.projected.shape[:2]), true_NK

    # ---- fitting ---------------------------------------------------------------------------------------------------

    def _solve(
        self, data: FoldData, ids: NDArray[np.int32], spectrum: Spectrum, chosen: dict[str, float]
    ) -> tuple[NDArray[np.float32], Tensor]:
        """Target means (P,) and coefficients (R, P) of the components, on the CPU."""
        means = np.empty(data.targets.size, np.float32)
        coefficients_RP = torch.empty(len(spectrum.values), data.targets.size)
        for group in data.groups:
            alpha = chosen[group.name]
            gain_R1 = spectrum.gain(alpha).float()[:, None]
            for start, stop in _blocks(group, len(ids)):
                targets_NK = self._columns(data.targets, ids, start, stop)
                mean_K = targets_NK.double().mean(0).float()
                targets_NK -= mean_K
                solved_RK = spectrum.components(targets_NK) * gain_R1
                if self.config.rescale == "train":
                    solved_RK *= spread_ratio(spectrum, alpha, targets_NK, solved_RK)
                means[start:stop] = mean_K.cpu().numpy()
                coefficients_RP[:, start:stop] = solved_RK.cpu()
        return means, coefficients_RP

    # ---- help ------------------------------------------------------------------------------------------------------

    def _tensor(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _scaler(self, data: FoldData, voxels: NDArray[np.float32], ids: NDArray[np.int32]) -> Scaler:
        """Z-scores voxels and multiplies them by their weights, all found on the given images."""
        scaler = Scaler.fit(voxels)
        if self.config.voxel_power == 0:
            return scaler
        spans = [span for group in data.groups for span in _blocks(group, len(ids))]
        components_NK = leading_components(data.targets.columns(ids, *span) for span in spans)
        weights_V = voxel_weights(scaler.transform(voxels), components_NK, self.config.voxel_power)
        return Scaler(mean=scaler.mean, scale=scaler.scale / weights_V)

    def _decompose(self, scaler: Scaler, voxels: NDArray[np.float32]) -> Spectrum:
        return decompose(self._tensor(scaler.transform(voxels)))

    def _columns(self, targets: Columns, ids: NDArray[np.int32], start: int, stop: int) -> Tensor:
        return self._tensor(targets.columns(ids, start, stop))


def spread_ratio(spectrum: Spectrum, alpha: float, targets_NK: Tensor, solved_RK: Tensor) -> Tensor:
    """What predictions must be multiplied by to vary as much as the training targets do, per column (K,).

    Ridge shrinks. How much is measured on leave-one-out predictions of the training images, which the hat matrix gives
    in closed form: y_i - (y_i - fit_i) / (1 - h_i). Fitted values would look too spread out, and test predictions must
    not be looked at (re-standardising those, as published codes do, needs the whole test set).

    targets_NK: centred; solved_RK: unscaled coefficients of the components. Columns that do not vary keep ratio 1.
    """
    fitted_NK = spectrum.left @ (spectrum.values.float()[:, None] * solved_RK)
    left_out_N1 = (1 - spectrum.leverage(alpha)).clamp(min=1e-6).float()[:, None]
    held_out_NK = targets_NK - (targets_NK - fitted_NK) / left_out_N1
    wanted_K, found_K = targets_NK.std(0, correction=0), held_out_NK.std(0, correction=0)
    varying_K = (wanted_K > 1e-6 * targets_NK.abs().max()) & (found_K > 1e-6 * wanted_K)
    return torch.where(varying_K, wanted_K / found_K.clamp(min=1e-30), torch.ones_like(wanted_K))


def _blocks(group: Group, n_images: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_NUMBERS // n_images)
    for start in range(group.start, group.stop, step):
        yield start, min(start + step, group.stop)


def _compact(right_VR: Tensor, coefficients_RP: Tensor) -> dict[str, NDArray[np.float32]]:
    """Weights, or their two factors where these hold fewer numbers (many voxels and many columns, few images)."""
    (n_voxels, n_components), n_columns = right_VR.shape, coefficients_RP.shape[1]
    if n_voxels * n_columns <= n_components * (n_voxels + n_columns):
        return {"weights": (right_VR @ coefficients_RP).numpy()}
    return {"directions": right_VR.contiguous().numpy(), "coefficients": coefficients_RP.numpy()}


def _group_details(group: Group, alphas: list[float], best: int, scores: ValidationScores) -> dict[str, Any]:
    curves = {"unexplained": scores.unexplained(), "correlation": scores.correlation()}
    curves["identification"] = scores.identification()
    rounded = {name: [round(float(v), 6) for v in values] for name, values in curves.items()}
    return {"name": group.name, "columns": [group.start, group.stop], "alpha": alphas[best], **rounded}


def _warn_at_edge(alphas: list[float], groups: list[dict[str, Any]]) -> None:
    """Say so when a wider list of penalties might do better; where nothing can be decoded, none would."""
    ends = (alphas[0], alphas[-1])
    at_end = {g["name"]: g["alpha"] for g in groups if g["alpha"] in ends and min(g["unexplained"]) < 1}
    if at_end and len(alphas) > 1:
        log.warning("the best of mapper.alphas lies at the end of the list for %s; a wider list may do better", at_end)
