"""Where a new subject's layer starts: from ridge regression onto what the shared space holds for the same targets.

A pretrained trunk expects from a subject layer what it got from those it was trained with. For the anchors, images of
which those are known, kernel ridge regression learns what the shared space holds given the target; for the new
subject's training images, whose targets are known too, it says what the layer should give; and a second ridge
regression finds the layer, its penalty chosen on the validation images. No image need have been seen by two subjects.
With few trials this is most of what fine-tuning has to find: a layer from chance must first undo itself, and the trunk
with it.

Shapes: A anchors, N training images, M validation images, V voxels, H hidden, P standardised numbers of the targets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.data.subject import mean_betas
from nd.mappers.base import Columns
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network
from nd.mappers.network.trunk import SubjectLayer, layer_of
from nd.mappers.ridge_solver import decompose
from nd.mappers.statistics import BLOCK_NUMBERS, TargetScale

if TYPE_CHECKING:
    from nd.mappers.training.pretrained import Pretrained
    from nd.mappers.training.stage import Stage, Trained

log = logging.getLogger(__name__)

MOST_ANCHORS = 2000
# Penalties as shares of the largest squared singular value.
SHARES = tuple(10.0**power for power in np.arange(-6, 0.5, 0.5))
FOLDS = 5


def anchors_of(stage: Stage, trained: Trained) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Return evenly spaced training images, and by trunk the mean (A, H) of what the subject layers make of them.

    None of a front whose layers cannot be started from them.
    """
    if not stage.front.aligns:
        return np.empty(0, np.int32), {}
    ids = stage.train_ids
    ids = ids[np.linspace(0, len(ids) - 1, min(MOST_ANCHORS, len(ids))).astype(int)].astype(np.int32)
    total = {name: torch.zeros(len(ids), stage.network_config.hidden) for name in trained.network.trunks}
    count = torch.zeros(len(ids), 1)
    for subject, fold in stage.subjects:
        rows = np.flatnonzero(np.isin(ids, fold.train))
        voxels = trained.data.scalers[subject.name].transform(mean_betas(subject, ids[rows]))
        count[rows] += 1
        with torch.no_grad():
            for name in total:
                layer = layer_of(trained.network.trunk(name).subject_layers, subject.name, subject.n_voxels)
                total[name][rows] += layer(torch.from_numpy(voxels))
    return ids, {name: values / count for name, values in total.items()}


def align(stage: Stage, network: Network, start: Pretrained) -> None:
    """Give the subject's layer of every trunk its start (``alignment``); reads training and validation images alone."""
    ((subject, fold),) = stage.subjects
    data = stage.data()
    data.setup()
    scaler = data.scalers[subject.name]
    voxels, held = (scaler.transform(mean_betas(subject, ids)) for ids in (fold.train, fold.val))
    reader_ids = np.union1d(stage.seen, start.anchor_ids)
    truths = stage.truths_of(reader_ids)
    both = np.concatenate([fold.train, fold.val])
    for name in network.trunks:
        slices = [part for part in network.slices if network.trunk_of[part.name] == name]
        places = shared_places(start.anchors[name], start.anchor_ids, both, slices, dict(truths), start.scales)
        n = len(fold.train)
        weight_HV, bias_H = aligned_layer(voxels, places[:n], held, places[n:])
        layer = layer_of(network.trunk(name).subject_layers, subject.name, subject.n_voxels)
        assert isinstance(layer, SubjectLayer)
        with torch.no_grad():
            layer.weight.copy_(weight_HV)
            layer.bias.copy_(bias_H)


def shared_places(
    anchors_AH: Tensor,
    anchor_ids: NDArray[Any],
    ids: NDArray[Any],
    slices: Sequence[TargetSlice],
    truths: dict[str, Columns],
    scales: dict[str, TargetScale],
) -> Tensor:
    """Return (N, H) float32, what the shared space holds for images, by kernel ridge regression from their targets.

    The penalty is chosen over folds of the anchors.

    Args:
        anchors_AH: what the shared space holds for the anchors.
        anchor_ids, ids: (A,) and (N,) images; no others are read from `truths`.
        slices: of the targets that are used.
        truths, scales: by target.
    """
    both = np.concatenate([anchor_ids, ids])
    gram = torch.zeros(len(both), len(anchor_ids), dtype=torch.float64)
    for values in _standardised(both, slices, truths, scales):
        gram += values @ values[: len(anchor_ids)].T
    fitted_AA, wanted_NA = gram[: len(anchor_ids)], gram[len(anchor_ids) :]
    goal_AH = anchors_AH.double()
    penalty = _kernel_penalty(fitted_AA, goal_AH)
    mean_H = goal_AH.mean(0)
    return (mean_H + wanted_NA @ _dual(fitted_AA, goal_AH - mean_H, penalty)).float()


def _standardised(
    ids: NDArray[Any], slices: Sequence[TargetSlice], truths: dict[str, Columns], scales: dict[str, TargetScale]
) -> Iterator[Tensor]:
    """(n, K) blocks of standardised columns of all slices, float64."""
    step = max(1, BLOCK_NUMBERS // len(ids))
    for part in slices:
        scale = scales[part.target]
        for start in range(part.start, part.stop, step):
            stop = min(start + step, part.stop)
            values = truths[part.target].columns(ids, start, stop) - scale.mean[start:stop]
            yield torch.from_numpy(values / scale.scale[start:stop]).double()


def _dual(gram_AA: Tensor, goal_AH: Tensor, penalty: float) -> Tensor:
    return torch.linalg.solve(gram_AA + penalty * torch.eye(len(gram_AA), dtype=torch.float64), goal_AH)


def _kernel_penalty(gram_AA: Tensor, goal_AH: Tensor) -> float:
    """The penalty with the smallest squared error over folds of the anchors."""
    largest = float(torch.linalg.eigvalsh(gram_AA)[-1])
    fold_A = torch.arange(len(gram_AA)) % FOLDS
    errors = dict.fromkeys(SHARES, 0.0)
    for k in range(min(FOLDS, len(gram_AA))):
        kept, held = fold_A != k, fold_A == k
        mean_H = goal_AH[kept].mean(0)
        for share in SHARES:
            dual = _dual(gram_AA[kept][:, kept], goal_AH[kept] - mean_H, share * largest)
            errors[share] += float((mean_H + gram_AA[held][:, kept] @ dual - goal_AH[held]).square().sum())
    return min(errors, key=errors.__getitem__) * largest


def aligned_layer(
    voxels_NV: NDArray[np.float32], places_NH: Tensor, val_voxels_MV: NDArray[np.float32], val_places_MH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight (H, V) and bias (H,) of the layer that gives places from voxels, by ridge regression.

    The penalty is chosen on the validation images.

    Args:
        voxels_NV: (N, V) float32, scaled, of the training images.
        places_NH: (N, H) what the layer should give.
        val_voxels_MV, val_places_MH: the same of the validation images.
    """
    x, held = torch.from_numpy(voxels_NV), torch.from_numpy(val_voxels_MV)
    mean_V, mean_H = x.mean(0), places_NH.mean(0)
    svd = decompose(x - mean_V)
    components_RH = svd.components(places_NH - mean_H)
    held_MR = (held - mean_V) @ svd.right
    largest, errors = float(svd.values.max() ** 2), {}
    for share in SHARES:
        gain_R1 = svd.gain(share * largest).float()[:, None]
        predicted_MH = held_MR @ (gain_R1 * components_RH) + mean_H
        errors[share] = float((predicted_MH - val_places_MH).square().sum())
    best = min(errors, key=errors.__getitem__)
    gain_R1 = svd.gain(best * largest).float()[:, None]
    weight_VH = svd.right @ (gain_R1 * components_RH)
    total = float((val_places_MH - mean_H).square().sum())
    explained = 1 - errors[best] / max(total, torch.finfo(torch.float32).tiny)
    log.info("aligned the subject layer: %.0f%% of the shared space explained", 100 * explained)
    return weight_VH.T.contiguous(), mean_H - mean_V @ weight_VH
