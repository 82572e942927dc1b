"""NeuralDiffuser's generator: decoded z, c and g to images, R per image, for one run or for all points of a sweep.

B images, R repeats.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nd.backbone.loading import load_backbone
from nd.config import Config
from nd.generate.base import Pictures, to_uint8
from nd.generate.memory import plan_for
from nd.generate.noise import noise_for, shared_noise
from nd.generate.previews import Previews
from nd.generate.sampler import GuidedSampler, Sampled, point_of
from nd.generate.trajectories import Point


class GuidedDiffusion:
    """The guided sampler with the noise that belongs to each image and repeat."""

    def __init__(self, sampler: GuidedSampler, seed: int, repeats: int, previews: Previews | None = None) -> None:
        self.sampler, self.seed, self.repeats, self.previews = sampler, seed, repeats, previews

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Pictures]:
        """Return the images of each point. Reads features z, c and, when guided, g."""
        noise = self._noise(image_ids).to(features["z"].device)
        preview = functools.partial(self.previews.write, image_ids) if self.previews else None
        found = self.sampler.sample(features["z"], features["c"], features.get("g"), noise, preview)
        self.previews = None  # of the first batch alone
        truncate = self.sampler.arithmetic.truncate
        return [
            Pictures(to_uint8(one.pictures, truncate=truncate), self._failed(point, one, image_ids))
            for point, one in zip(self.sampler.points, found, strict=True)
        ]

    def _noise(self, image_ids: Sequence[int]) -> Tensor:
        shape = self.sampler.backbone.latent_shape
        if self.sampler.arithmetic.own_noise:
            return noise_for(self.seed, image_ids, self.repeats, shape)
        return shared_noise(self.seed, self.repeats, shape).expand(len(image_ids), -1, -1, -1, -1)

    def _failed(self, point: Point, sampled: Sampled, image_ids: Sequence[int]) -> dict[int, str]:
        n_steps = len(self.sampler.schedule)
        failed: dict[int, str] = {}
        for row, repeat in sampled.stopped.nonzero().tolist():
            failed.setdefault(
                int(image_ids[row]),
                f"image {image_ids[row]}, repeat {repeat}: the latents stopped being finite at step "
                f"{int(sampled.stopped[row, repeat])} of {n_steps} with guidance.kappa={point.kappa}",
            )
        return failed


def build(cfgs: Sequence[Config], device: torch.device) -> GuidedDiffusion:
    """Load the backbone on a device and prepare the sampler for configurations that differ in kappa and eta alone."""
    cfg = cfgs[0]
    backbone = load_backbone(cfg.backbone, device)
    sampler = GuidedSampler(backbone, cfg, [point_of(one) for one in cfgs])
    sampler.use(plan_for(sampler, cfg.trainer.memory_gb))
    previews = Previews(Path(cfg.trainer.previews), backbone, cfg.method.n_repeats) if cfg.trainer.previews else None
    return GuidedDiffusion(sampler, cfg.seed, cfg.method.n_repeats, previews)
