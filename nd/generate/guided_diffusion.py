"""NeuralDiffuser's generator: decoded z, c and g to pictures, R per image.

B images, R repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import load_backbone
from nd.generate.base import to_uint8
from nd.generate.noise import noise_for
from nd.generate.sampler import GuidedSampler
from nd.schema import Config


class GuidedDiffusion:
    """The guided sampler with the noise that belongs to each image and repeat."""

    def __init__(self, sampler: GuidedSampler, seed: int, repeats: int) -> None:
        self.sampler, self.seed, self.repeats = sampler, seed, repeats

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, R, H, W, 3) uint8. Reads features z, c and, when guided, g."""
        noise = noise_for(self.seed, image_ids, self.repeats, self.sampler.backbone.latent_shape).to(
            features["z"].device
        )
        return to_uint8(self.sampler.sample(features["z"], features["c"], features.get("g"), noise, image_ids))


def wanted_targets(cfg: Config) -> list[str]:
    """Return z and c, and g where something is guided."""
    guided = cfg.guidance.kappa > 0 and cfg.guidance.eta > 0
    return ["z", "c", "g"] if guided else ["z", "c"]


def build(cfg: Config, device: torch.device) -> GuidedDiffusion:
    """Load the backbone on a device and prepare the sampler."""
    sampler = GuidedSampler(load_backbone(cfg.backbone, device), cfg)
    return GuidedDiffusion(sampler, cfg.seed, cfg.method.repeats)
