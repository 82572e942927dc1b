"""What each patch of a drawn image shows, and the layers that must tell it: a helper task in training.

Contrast with captions teaches a small transformer colours within minutes and shapes within days. Drawn images come
with more than captions: which object lies where, and how. Told patch by patch, it teaches shapes within half an hour.

Shapes: N images, B batch, P patches row-major, K kinds of labels, Q numbers of a pose, S points within a patch,
W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear, smooth_l1_loss

NOTHING_WEIGHT = 0.1  # most patches show none of the objects
POSE_WEIGHT, POSE_BETA = 4.0, 0.3


@dataclass(frozen=True)
class Patches:
    """What is seen in each patch.

    labels: (N, P, K) int8 from 0, which stands for nothing to be told. pose: (N, P, Q) float16, how the object in it
    lies, counted only where the first label is not 0. cover: (N, P, S) bool, which points of it show an object.
    """

    labels: NDArray[np.int8]
    pose: NDArray[np.float16]
    cover: NDArray[np.bool_]

    @property
    def n_classes(self) -> list[int]:
        """Number of different labels of each kind."""
        return [int(c) + 1 for c in self.labels.max((0, 1))]


class PatchHeads(nn.Module):
    """Linear layers from features of patches to what the patches show; only training uses them."""

    def __init__(self, width: int, patches: Patches) -> None:
        super().__init__()
        self.patches, self.n_classes = patches, patches.n_classes
        self.parts = [sum(self.n_classes), patches.pose.shape[-1], patches.cover.shape[-1]]
        self.layer = nn.Linear(width, sum(self.parts))

    def forward(self, features_BPW: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Loss of the features of images `rows`: labels, poses and covers, in float32."""
        with torch.autocast("cpu", enabled=False):
            told = linear(features_BPW.float(), self.layer.weight, self.layer.bias)
        labels_BPC, pose_BPQ, cover_BPS = told.split(self.parts, -1)
        wanted_BPK = torch.from_numpy(self.patches.labels[rows].astype(np.int64))
        there_BP = wanted_BPK[..., 0] > 0
        pose = torch.from_numpy(self.patches.pose[rows].astype(np.float32))[there_BP]
        covered_BPS = torch.from_numpy(self.patches.cover[rows].astype(np.float32))
        return (
            labels_loss(labels_BPC, wanted_BPK, self.n_classes)
            + POSE_WEIGHT * smooth_l1_loss(pose_BPQ[there_BP], pose, beta=POSE_BETA)
            + binary_cross_entropy_with_logits(cover_BPS, covered_BPS)
        )


def labels_loss(logits_BPC: Tensor, wanted_BPK: Tensor, n_classes: list[int]) -> Tensor:
    """Cross-entropy of the labels, summed over their kinds; nothing-to-be-told weighs little."""
    total = logits_BPC.new_zeros(())
    for k, logits_BPc in enumerate(logits_BPC.split(n_classes, -1)):
        weight = torch.ones(n_classes[k])
        weight[0] = NOTHING_WEIGHT
        total = total + cross_entropy(logits_BPc.flatten(0, 1), wanted_BPK[..., k].flatten(), weight)
    return total
