"""What the voxels say in words: captions of training images that stand nearest to a decoded text condition.

SoulDiffuser's figure has a language model behind an outside service write a caption from the decoded embedding
(LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg). Here nothing leaves the machine: the caption is the nearest of those that
people wrote of training images, or a mixture of the nearest ones.

Shapes: B images, N training images, P numbers of a condition, K captions, T tokens, D width.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.generate.floors import unit
from nd.generate.inputs import TrainingImages
from nd.targets.store import TargetStore, store_path

AT_ONCE = 256  # training images read together


@dataclass(frozen=True)
class Said:
    """Captions that stand for one image, the nearest first, and the weight of each; weights sum to 1."""

    captions: list[str]
    weights: list[float]


class TrainingCaptions:
    """The nearest captions of the images that an image's mapper was fitted on. Test images are out of reach.

    Images are judged first, by the mean condition of their captions (target c), then the captions of the nearest ones,
    each by itself. Both by correlation, less the mean of the training images: what all conditions share says nothing.
    Every image is compared alone, so that what it gets does not depend on its batch.
    """

    def __init__(self, cfg: Config, backbone: Backbone) -> None:
        """Take the training images, their target c, and the text encoder.

        Args:
            cfg: its method's text, text_images and text_temperature, and how target c is made.
            backbone: whose text encoder conditions the UNet.
        """
        self.backbone, self.method, self.target = backbone, cfg.method, cfg.decoding("c").target
        self.training, self.store, self.stimuli = TrainingImages(cfg), store_path(cfg, "c"), stimuli_path(cfg)

    def __call__(self, image_ids: Sequence[int], c_BTD: Tensor) -> tuple[Tensor, list[Said]]:
        """Return the conditions (B, T, D) of the captions that stand for each image, and these captions."""
        found = [self._one(int(i), decoded) for i, decoded in zip(image_ids, c_BTD.cpu().float().numpy(), strict=True)]
        return torch.stack([condition for condition, _ in found]).to(c_BTD), [said for _, said in found]

    def _one(self, image_id: int, decoded_TD: NDArray[np.float32]) -> tuple[Tensor, Said]:
        fold = self.training.fold_of(image_id)
        mean_P = self._mean(fold)
        decoded_P = unit(decoded_TD.reshape(1, -1) - mean_P)[0]
        captions = self._captions_of(fold, self._nearest(fold, mean_P, decoded_P))
        with torch.inference_mode():
            encoded_KTD = self.backbone.encode_text(captions, self.target.tokens).float()
        near_K = unit(encoded_KTD.cpu().numpy().reshape(len(captions), -1) - mean_P) @ decoded_P
        order = np.argsort(-near_K, kind="stable")
        order = order[:1] if self.method.text == "nearest" else order
        weights_K = shares(near_K[order], self.method.text_temperature)
        condition_TD = torch.einsum("k,ktd->td", torch.from_numpy(weights_K).to(encoded_KTD), encoded_KTD[order])
        return condition_TD, Said([captions[k] for k in order], weights_K.tolist())

    @lru_cache(maxsize=16)  # noqa: B019 - one object per process and run
    def _mean(self, fold: int) -> NDArray[np.float32]:
        """(P,) of the fold's training images."""
        ids = self.training.ids(fold)
        store = TargetStore(self.store, allowed_ids=ids)
        total = sum(store.columns(part, 0, store.size).sum(0, dtype=np.float64) for part in _parts(ids))
        return np.asarray(total / len(ids), np.float32)

    def _nearest(self, fold: int, mean_P: NDArray[np.float32], decoded_P: NDArray[np.float32]) -> NDArray[np.int32]:
        """Ids of the `text_images` training images whose conditions correlate best, the best first."""
        ids = self.training.ids(fold)
        store = TargetStore(self.store, allowed_ids=ids)
        near_N = np.concatenate([unit(store.columns(part, 0, store.size) - mean_P) @ decoded_P for part in _parts(ids)])
        return ids[np.argsort(-near_N, kind="stable")[: self.method.text_images]]

    def _captions_of(self, fold: int, ids: NDArray[np.int32]) -> list[str]:
        """Captions of some training images, each once: the first ones of each image, as many as target c is made of."""
        own = Stimuli(self.stimuli, allowed_ids=self.training.ids(fold)).captions(ids)
        return list(dict.fromkeys(caption for one in own for caption in one[: self.target.max_captions or None]))


def shares(near_K: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return weights (K,) that sum to 1: the softmax of correlations over a temperature.

    >>> shares(np.array([0.3, 0.3], np.float32), 0.05)
    array([0.5, 0.5], dtype=float32)
    """
    raised_K = np.exp((near_K - near_K.max()) / np.float32(temperature))
    return np.asarray(raised_K / raised_K.sum(), np.float32)


def as_csv(image_ids: Sequence[int], said: Sequence[Said]) -> str:
    """Return image_id, weight and caption, a line for each caption of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "weight", "caption"])
    for image_id, one in zip(image_ids, said, strict=True):
        writer.writerows([int(image_id), f"{w:.4f}", c] for c, w in zip(one.captions, one.weights, strict=True))
    return text.getvalue()


def _parts(ids: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]
