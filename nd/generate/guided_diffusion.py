"""NeuralDiffuser's generator: decoded z, c and g to images, R per image, for one run or for all points of a sweep.

B images, R repeats, S samples, C h w latent, H W image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.files import atomic_path
from nd.generate.base import Reconstructions, not_finite, to_uint8
from nd.generate.plan import Plan, plan_for
from nd.generate.sampler import GuidedSampler, Preview, Sampled, point_of
from nd.generate.trajectories import Point, noise_for, shared_noise


class Previews:
    """One strip of the repeats of one image after every step: its latents on their way, decoded, which costs time."""

    def __init__(self, folder: Path, backbone: Backbone, repeats: int) -> None:
        self.folder, self.backbone, self.repeats = folder, backbone, repeats

    def write(self, image_ids: Sequence[int], step: int, z_SChw: Tensor) -> Path:
        """Write <folder>/image-<id>-step-<n>.png of the first image.

        Args:
            image_ids: of the batch.
            step: from 1.
            z_SChw: noisy latents of the batch, repeats of an image side by side.

        Returns:
            The file.
        """
        with torch.inference_mode():
            images_RHW3 = to_uint8(self.backbone.decode(z_SChw[: self.repeats]).unsqueeze(0))[0]
        path = self.folder / f"image-{int(image_ids[0]):05d}-step-{step:03d}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(np.concatenate(list(images_RHW3), axis=1)).save(temporary, format="PNG")
        return path


def previews_of(cfg: Config, backbone: Backbone) -> Previews | None:
    """Return where a run's first batch is recorded; None where nobody asks, and in all processes but the first."""
    if not cfg.trainer.previews or (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0):
        return None
    return Previews(Path(cfg.trainer.previews), backbone, cfg.method.n_repeats)


class GuidedDiffusion:
    """The guided sampler with the noise that belongs to each image and repeat."""

    steered_by = "guidance.kappa"

    def __init__(
        self,
        sampler: GuidedSampler,
        seed: int,
        repeats: int,
        previews: Previews | None = None,
        memory_gb: float = 0.0,
    ) -> None:
        """Take a sampler.

        Args:
            sampler: of one run, or of all points of a sweep.
            seed: of the starting noise.
            repeats: R.
            previews: of the first batch.
            memory_gb: what to keep within (``trainer.memory_gb``); 0 for what is free.
        """
        self.sampler, self.seed, self.repeats, self.previews = sampler, seed, repeats, previews
        self.memory_gb = memory_gb
        self.watch: Callable[[float], object] | None = None

    def plan_for(self, batches: Sequence[int]) -> Plan:
        """Return the fastest plan for batches of so many images. Raises UserError where memory is too small."""
        return plan_for(self.sampler, self.memory_gb, [n * self.repeats for n in batches])

    def use(self, plan: Plan) -> None:
        """Follow a plan from now on."""
        self.sampler.use(plan)

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of each point.

        Args:
            image_ids: B stimulus numbers.
            features: z (B, C, h, w), c (B, T, D) and, when something is guided, g (B, L, T, D).
        """
        noise = self._noise(image_ids).to(features["z"].device)
        preview = functools.partial(self.previews.write, image_ids) if self.previews else None
        self.sampler.watch = self.watch
        found = self._sampled(features, noise, preview)
        self.previews = None  # of the first batch alone
        truncate = self.sampler.arithmetic.truncate
        return [
            Reconstructions(to_uint8(one.images, truncate=truncate), self._failed(point, one, image_ids))
            for point, one in zip(self.sampler.points, found, strict=True)
        ]

    def _sampled(self, features: Mapping[str, Tensor], noise: Tensor, preview: Preview | None) -> list[Sampled]:
        return self.sampler.sample(features["z"], features["c"], features.get("g"), noise, preview)

    def _noise(self, image_ids: Sequence[int]) -> Tensor:
        shape = self.sampler.backbone.latent_shape
        if self.sampler.arithmetic.own_noise:
            return noise_for(self.seed, image_ids, self.repeats, shape)
        return shared_noise(self.seed, self.repeats, shape).expand(len(image_ids), -1, -1, -1, -1)

    def _failed(self, point: Point, sampled: Sampled, image_ids: Sequence[int]) -> dict[int, str]:
        n_steps = len(self.sampler.schedule)
        steered = f" with {self.steered_by}={point.kappa}" if point.key.n_guided else ""
        failed: dict[int, str] = {}
        for row, repeat in sampled.stopped.nonzero().tolist():
            failed.setdefault(
                int(image_ids[row]),
                f"image {image_ids[row]}, repeat {repeat}: the latents stopped being finite at step "
                f"{int(sampled.stopped[row, repeat])} of {n_steps}{steered}",
            )
        return not_finite(image_ids, sampled.images) | failed


def build(cfgs: Sequence[Config], device: torch.device) -> GuidedDiffusion:
    """Load the backbone on a device and prepare the sampler for configurations that differ in kappa and eta alone."""
    cfg = cfgs[0]
    backbone = load_backbone(cfg.backbone, device)
    sampler = GuidedSampler(backbone, cfg, [point_of(one) for one in cfgs])
    return GuidedDiffusion(sampler, cfg.seed, cfg.method.n_repeats, previews_of(cfg, backbone), cfg.trainer.memory_gb)
