"""Statistics of the images fitted on: mean and spread of target columns, and what targets explain of each voxel.

Shapes: N images, V voxels, P target columns, K columns of a block, or components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nd.config import MapperConfig
from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.files import atomic_path
from nd.mappers.base import Columns, FoldData, blocks, column_blocks

BLOCK_NUMBERS = 1 << 22  # numbers of one block of columns: 32 MiB in float64
# Columns that vary by less than this share of the target's mean spread are constants with rounding, such as the first
# token of c; predicted to the full they would be noise blown up.
NEARLY_CONSTANT = 1e-3
# Few enough that their share in a voxel of pure noise, N_COMPONENTS / N, stays small; enough for the target's gist.
N_COMPONENTS = 10
TINY = 1e-12
MIN_WEIGHT = 1e-6  # a voxel's scale is divided by it and must stay finite


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and population standard deviation (P,) of every column; the latter is 0 where a column is constant.

    Found in double precision. Those of targets are kept as float32, in which predictions are; those of predictions, by
    which others are standardised, as float64: a column's mean may be large beside its spread.
    """

    mean: NDArray[np.floating[Any]]
    std: NDArray[np.floating[Any]]

    @classmethod
    def fit(cls, targets: Columns, ids: NDArray[Any]) -> TargetStatistics:
        """Return the statistics of all columns over the images `ids` (N,), read in blocks.

        Args:
            targets: read by columns.
            ids: (N,) image ids that count.

        Returns:
            Means and deviations of all columns, float64 sums of float32 values.
        """
        mean, std = np.empty(targets.size, np.float32), np.empty(targets.size, np.float32)
        for columns in blocks(0, targets.size, _columns_at_once(len(ids))):
            mean[columns], std[columns] = column_statistics(targets.columns(ids, columns.start, columns.stop))
        return cls(mean, std)

    @classmethod
    def load(cls, path: Path, train_command: str) -> TargetStatistics:
        """Return what `save` wrote.

        Args:
            path: of `statistics_path`.
            train_command: what makes it again, for the message.

        Raises:
            UserError: the file is absent or damaged.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(
                f"{path}, which mapper.rescale needs, cannot be read ({error}). Remove its run folder and run:"
                f" {train_command}"
            ) from None

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically.

        Raises:
            UserError: the disk is full.
        """
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would keep others from reading
            save_file({"mean": self.mean, "std": self.std}, temporary)
            temporary.chmod(mode)

    @classmethod
    def of_predictions(cls, predicted_NP: NDArray[np.float32]) -> TargetStatistics:
        """Return the statistics of predictions (N, P) float32; spread that single precision alone makes is none."""
        mean, std = np.empty(predicted_NP.shape[1]), np.empty(predicted_NP.shape[1])
        for columns in blocks(0, predicted_NP.shape[1], _columns_at_once(len(predicted_NP))):
            found_NK = predicted_NP[:, columns].astype(np.float64)
            mean[columns], std[columns] = column_statistics(found_NK, float(np.finfo(np.float32).eps))
        return cls(mean, std)

    def given_to(
        self, predicted_NP: NDArray[np.float32], held_out: TargetStatistics | None = None
    ) -> NDArray[np.float32]:
        """Return predictions standardised, then given these means and spreads.

        A prediction that is the same for all images becomes the mean. Regression shrinks, most where it knows least;
        this undoes it without asking how much. By the statistics of the predictions themselves it is transductive:
        each then depends on the other images. ozcelikfu/brain-diffuser@31d52c0:scripts/vdvae_regression.py (and of
        both CLIP targets) and HaoyyLi/NeuralDiffuser@9286cad:src/score_z.py (z) do that.

        Args:
            predicted_NP: (N, P) float32, in the units of the target.
            held_out: statistics by which they are standardised: of predictions of images that were not trained on.
                None: those of `predicted_NP`.

        Returns:
            (N, P) float32.

        Raises:
            UserError: fewer than 2 images, which have no spread.
        """
        if held_out is None and len(predicted_NP) < 2:
            raise UserError(
                f"mapper.rescale=test standardises predictions by their own spread, which {len(predicted_NP)} image(s)"
                " do not have. Predict at least 2 images, or set mapper.rescale=none."
            )
        by, given = held_out or self.of_predictions(predicted_NP), np.empty_like(predicted_NP)
        for columns in blocks(0, predicted_NP.shape[1], _columns_at_once(len(predicted_NP))):
            standard_NK = standardised(predicted_NP[:, columns].astype(np.float64), by.mean[columns], by.std[columns])
            given[:, columns] = standard_NK * self.std[columns] + self.mean[columns]
        return given


def statistics_path(checkpoint: Path) -> Path:
    """Return where the statistics lie that belong to a checkpoint's file of arrays."""
    return checkpoint.with_name(f"{checkpoint.stem}-targets{checkpoint.suffix}")


def held_out_path(checkpoint: Path) -> Path:
    """Return where the statistics of a checkpoint's predictions of its validation images lie."""
    return checkpoint.with_name(f"{checkpoint.stem}-predictions{checkpoint.suffix}")


def column_statistics(
    values_NK: NDArray[Any], rounding: float = float(np.finfo(np.float64).eps)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and population standard deviation (K,) float64 of columns.

    Args:
        values_NK: (N, K), in any units.
        rounding: relative rounding error of the values; a standard deviation that it explains is 0.
    """
    mean_K, std_K = values_NK.mean(0, dtype=np.float64), values_NK.std(0, dtype=np.float64)
    return mean_K, np.where(std_K <= 10 * rounding * np.abs(mean_K), 0.0, std_K)


def standardised(
    values_NK: NDArray[np.floating[Any]], mean_K: NDArray[np.floating[Any]], std_K: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return columns (N, K) less their mean (K,), over their standard deviation (K,), float64; 0 where that is 0."""
    return np.asarray((values_NK - mean_K) * _inverse(std_K))


def _inverse(std_K: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.divide(1.0, std_K, out=np.zeros(std_K.shape), where=std_K > 0)


def _columns_at_once(n_images: int) -> int:
    return max(1, BLOCK_NUMBERS // max(1, n_images))


@dataclass(frozen=True)
class TargetScale:
    """Mean and spread of a target that a network's outputs are relative to: ``(target - mean) / scale`` per column.

    Attributes:
        mean, scale: (P,) float32, in the target's units; the scale is above 0.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, targets: Columns, ids: NDArray[Any]) -> TargetScale:
        """Return the statistics of the training images `ids` (N,); a column that is all but constant has scale 1."""
        found = TargetStatistics.fit(targets, ids)
        constant = found.std <= NEARLY_CONSTANT * found.std.mean(dtype=np.float64)
        return cls(found.mean.astype(np.float32), np.where(constant, 1.0, found.std).astype(np.float32))

    @classmethod
    def plain(cls, size: int) -> TargetScale:
        """Return what leaves `size` columns as they are: published code trains on raw features."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))


def voxel_scaler(
    data: FoldData, voxels_NV: NDArray[np.float32], ids: NDArray[np.int32], config: MapperConfig
) -> Scaler:
    """Return what z-scores voxels and, unless `voxel_power` is 0, multiplies them by weights, found on given images.

    Plain ridge regression treats all z-scored voxels alike. Where few of thousands of voxels respond to the images, the
    others add noise that no penalty on all of them can tell from signal. A voxel's weight is the share of its variance
    that the target's leading principal components explain, to a power; a weight w in front of a voxel is the same as a
    penalty alpha / w^2 on its coefficient.

    Args:
        data: where the targets of `ids` are read.
        voxels_NV: (N, V) float32 responses as measured, a row for each of `ids`.
        ids: (N,) images fitted on.
        config: of ridge; `voxel_power` of the explained share, and `ddof` of the standard deviation.
    """
    scaler = Scaler.fit(voxels_NV)
    if config.ddof:
        scaler = Scaler(mean=scaler.mean, scale=scaler.scale * np.float32(len(ids) / (len(ids) - config.ddof)) ** 0.5)
    if config.voxel_power == 0:
        return scaler
    columns = column_blocks(0, data.targets.size, len(ids))
    components_NK = leading_components(data.targets.columns(ids, block.start, block.stop) for block in columns)
    weights_V = voxel_weights(scaler.transform(voxels_NV), components_NK, config.voxel_power)
    return Scaler(mean=scaler.mean, scale=scaler.scale / weights_V)


def leading_components(blocks_NP: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the target's leading principal components over images, (N, K) float64, orthonormal.

    Args:
        blocks_NP: blocks of columns (N, some) of the target, together all of them.
    """
    gram_NN: NDArray[np.float64] | float = 0.0
    for block in blocks_NP:
        centred = block.astype(np.float64) - block.mean(0, dtype=np.float64)
        gram_NN = gram_NN + centred @ centred.T
    variances, vectors_NN = np.linalg.eigh(np.asarray(gram_NN))
    keep = variances > TINY * max(variances[-1], TINY)
    return vectors_NN[:, keep][:, ::-1][:, :N_COMPONENTS]


def voxel_weights(
    scaled_NV: NDArray[np.float32], components_NK: NDArray[np.float64], power: float
) -> NDArray[np.float32]:
    """Return weights (V,) float32 of voxels, of mean square 1, so that penalties keep their meaning.

    Args:
        scaled_NV: (N, V) float32 z-scored voxels.
        components_NK: (N, K) of `leading_components`.
        power: of the explained share, 0 or more.
    """
    explained_V = np.square(components_NK.T @ scaled_NV).sum(0) / len(scaled_NV)
    weights_V = np.maximum(explained_V, TINY) ** power
    weights_V /= np.sqrt(np.square(weights_V).mean())
    return np.maximum(weights_V, MIN_WEIGHT).astype(np.float32)
