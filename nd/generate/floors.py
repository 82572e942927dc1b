"""Generators without a sampler: floors that any method must beat, and images straight from one target.

B images, R repeats, H W image, N training images, P numbers per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.generate.base import Reconstructions, not_finite, to_uint8
from nd.generate.inputs import TrainingImages
from nd.targets.noise import keyed_generator
from nd.targets.store import TargetStore, store_path

Single = Callable[[Sequence[int], Mapping[str, Tensor]], NDArray[np.uint8]]  # to (B, R, H, W, 3) uint8


class Alone:
    """A generator that makes the images of one run."""

    def __init__(self, single: Single) -> None:
        self.single = single

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of that run."""
        if isinstance(self.single, Chosen | DecodedLatents):
            return [self.single.shown(image_ids, features)]
        return [Reconstructions(self.single(image_ids, features))]


class MeanImage:
    """The mean training image, the same for every image of a fold; R = 1."""

    def __init__(self, training: TrainingImages) -> None:
        self.training = training

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, 1, H, W, 3) uint8."""
        return np.stack([self.training.mean(self.training.fold_of(i)) for i in image_ids])[:, None]


class Chosen(ABC):
    """Training images in place of reconstructions, with the first caption of each image's first one."""

    training: TrainingImages

    @abstractmethod
    def choose(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.int32]:
        """Return the ids (B, R) of training images, each of the fold in which its image is held out."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, R, H, W, 3) uint8."""
        return self.shown(image_ids, features).images

    def shown(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> Reconstructions:
        """Return images and, where the data has captions, those that stand for decoded ones."""
        each = [
            (self.training.fold_of(i), ids_R)
            for i, ids_R in zip(image_ids, self.choose(image_ids, features), strict=True)
        ]
        said = [text for fold, ids_R in each for text in self.training.first_captions(fold, ids_R[:1])]
        return Reconstructions(np.stack([self.training.images(fold, ids_R) for fold, ids_R in each]), captions=said)


class RandomImage(Chosen):
    """Training images drawn at random, one per repeat; a function of (seed, image id, repeat)."""

    def __init__(self, training: TrainingImages, seed: int, repeats: int) -> None:
        self.training, self.seed, self.repeats = training, seed, repeats

    def choose(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.int32]:
        """Return (B, R) int32."""
        return np.stack([self._of(i) for i in image_ids])

    def _of(self, image_id: int) -> NDArray[np.int32]:
        ids = self.training.ids(self.training.fold_of(image_id))
        draws = (keyed_generator(self.seed, image_id, r).integers(len(ids)) for r in range(self.repeats))
        return np.array([ids[draw] for draw in draws], np.int32)


class NearestImage(Chosen):
    """The training image whose true targets correlate best with the decoded ones; R = 1.

    Per target, both sides are centred by the training mean (what all images share says nothing about which is near)
    and correlated over all their numbers; the correlations are averaged over targets.
    """

    def __init__(self, training: TrainingImages, stores: Mapping[str, Path]) -> None:
        """Take the training images and the store of each target that is compared."""
        self.training, self.stores = training, stores

    def choose(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.int32]:
        """Return (B, 1) int32. Reads every target that has a store."""
        folds = np.array([self.training.fold_of(i) for i in image_ids])
        nearest = np.empty((len(folds), 1), np.int32)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            decoded = {name: features[name][rows].cpu().numpy() for name in self.stores}
            nearest[rows, 0] = self._nearest(int(fold), decoded)
        return nearest

    def _nearest(self, fold: int, decoded: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int32]:
        ids = self.training.ids(fold)
        total = sum(
            centred_correlation(values, TargetStore(self.stores[name], allowed_ids=ids).rows(ids))
            for name, values in decoded.items()
        )
        return ids[np.argmax(total, axis=1)]


def centred_correlation(decoded_BP: NDArray[np.float32], true_NP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation of each decoded with each true row, after subtracting the mean of the true rows.

    A row without variance correlates 0 with everything.

    Args:
        decoded_BP: decoded rows, of any shape behind B.
        true_NP: true rows, of the same shape behind N.

    Returns:
        (B, N) float32 in [-1, 1].
    """
    true_NP = true_NP.reshape(len(true_NP), -1)
    mean_P = true_NP.mean(axis=0)
    return unit(decoded_BP.reshape(len(decoded_BP), -1) - mean_P) @ unit(true_NP - mean_P).T


def unit(x_NP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows less their own mean, at length 1; a row that does not vary stays 0. Products are correlations."""
    x_NP = x_NP - x_NP.mean(axis=1, keepdims=True)
    return x_NP / np.maximum(np.linalg.norm(x_NP, axis=1, keepdims=True), np.finfo(np.float32).tiny)


class DecodedPixels:
    """Decoded pixels, clipped; R = 1."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, 1, H, W, 3) uint8. Reads feature pixels, (B, H, W, 3)."""
        return to_uint8(features["pixels"].movedim(-1, 1)[:, None])


class DecodedLatents:
    """What the autoencoder makes of the decoded latents, with no diffusion; R = 1."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, 1, H, W, 3) uint8. Reads feature z."""
        return self.shown(image_ids, features).images

    def shown(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> Reconstructions:
        """Return images, and which of them are not finite."""
        with torch.inference_mode():
            images = self.backbone.decode(features["z"])[:, None]
            return Reconstructions(to_uint8(images), not_finite(image_ids, images))


def build_mean(cfg: Config, device: torch.device) -> MeanImage:
    """Prepare the mean-image floor."""
    return MeanImage(TrainingImages(cfg))


def build_random(cfg: Config, device: torch.device) -> RandomImage:
    """Prepare the random-image floor."""
    return RandomImage(TrainingImages(cfg), cfg.seed, cfg.method.n_repeats)


def build_nearest(cfg: Config, device: torch.device) -> NearestImage:
    """Prepare the nearest-image floor over the method's targets."""
    return NearestImage(TrainingImages(cfg), {name: store_path(cfg, name) for name in cfg.method.targets})


def build_pixels(cfg: Config, device: torch.device) -> DecodedPixels:
    """Prepare the decoded-pixels generator."""
    return DecodedPixels()


def build_latents(cfg: Config, device: torch.device) -> DecodedLatents:
    """Load the autoencoder on a device."""
    return DecodedLatents(load_backbone(cfg.backbone, device))
