"""Image to image: a first guess is brought into the latent space, noised, and sampled anew under decoded conditions.

The sampler is that of guided diffusion with nothing to guide it. Points of a sweep share the first guess.

B images, R repeats, C h w latent, T tokens, D width, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.pillow import bicubic
from nd.config import Config
from nd.errors import UserError
from nd.generate.base import Reconstructions
from nd.generate.components import GuidedDiffusionSettings
from nd.generate.guidance import Arithmetic
from nd.generate.guided_diffusion import GuidedDiffusion, previews_of
from nd.generate.plan import Plan
from nd.generate.sampler import GuidedSampler
from nd.generate.trajectories import Point
from nd.targets.vae_latent import latents

# Images of the first stage at once: every call of one size, whatever the batch (nd.generate.plan).
FIRST_AT_ONCE = 4
# released: CompVis' sampler noises an image one slot above the step it starts from, in both code bases
# (ozcelikfu/brain-diffuser@31d52c0:scripts/versatilediffusion_reconstruct_images.py;
# yu-takagi/StableDiffusionReconstruction@e187d4b:codes/diffusion_sd1/diffusion_decoding.py).
VARIANTS = {"nd": Arithmetic(), "released": Arithmetic(slot_above=True, truncate=True)}
POSTERIORS = {"nd": "mode", "released": "sample"}


class FirstStage(Protocol):
    """What a method decodes, to what its sampler starts from."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor], at_once: int) -> tuple[Tensor, Tensor]:
        """Return first latents (B, C, h, w) and conditions (B, T, D).

        Args:
            image_ids: B stimulus numbers.
            features: the wanted targets.
            at_once: images that may go through a network together.
        """


class ImageToImage:
    """A first stage, and a sampler for each point of a sweep (``PlannedGenerator``)."""

    def __init__(self, first: FirstStage, samplers: Sequence[GuidedDiffusion]) -> None:
        """Take the first stage and the samplers, which run the same networks."""
        self.first, self.samplers = first, samplers
        self.watch: Callable[[float], object] | None = None

    def plan_for(self, batches: Sequence[int]) -> Plan:
        """Return the fastest plan that memory allows for all samplers. Raises UserError where it is too small."""
        return min((one.plan_for(batches) for one in self.samplers), key=lambda plan: (plan.plain, plan.decode))

    def use(self, plan: Plan) -> None:
        """Follow a plan from now on."""
        for one in self.samplers:
            one.use(plan)

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of each point."""
        at_once = min(FIRST_AT_ONCE, self.samplers[0].sampler.plan.decode)
        with torch.no_grad():
            z, c = self.first(image_ids, features, at_once)
        found: list[Reconstructions] = []
        for k, one in enumerate(self.samplers):
            one.watch = None if self.watch is None else self._share(k)
            found += one(image_ids, {"z": z, "c": c})
        return found

    def _share(self, k: int) -> Callable[[float], object]:
        return lambda share: self.watch and self.watch((k + share) / len(self.samplers))


def sampler_of(
    backbone: Backbone, cfg: Config, kind: Callable[..., GuidedDiffusion] = GuidedDiffusion
) -> GuidedDiffusion:
    """Return guided diffusion's sampler, unguided, with a method's own schedule and scale.

    Args:
        backbone: whose networks.
        cfg: its method's steps, strength, cfg_scale, repeats and variant, and its seed.
        kind: GuidedDiffusion, or what extends it.
    """
    sampler = GuidedSampler(backbone, unguided(cfg), [Point(0.0, 0)], arithmetic=VARIANTS[cfg.method.variant])
    return kind(sampler, cfg.seed, cfg.method.repeats, memory_gb=cfg.trainer.memory_gb)


def samplers_of(
    backbone: Backbone, cfgs: Sequence[Config], kind: Callable[..., GuidedDiffusion] = GuidedDiffusion
) -> list[GuidedDiffusion]:
    """Return ``sampler_of`` each configuration of a sweep; the first one shows previews where they are asked for."""
    made = [sampler_of(backbone, cfg, kind) for cfg in cfgs]
    made[0].previews = previews_of(cfgs[0], backbone)
    return made


def unguided(cfg: Config) -> Config:
    """Return a configuration in which nothing is guided, with the method's own schedule and scale."""
    own = cfg.method
    strength = own.sampled_steps / own.steps  # int(steps * strength) of it is the same number
    plain = GuidedDiffusionSettings(steps=own.steps, strength=strength, cfg_scale=own.cfg_scale, repeats=own.repeats)
    return replace(cfg, method=plain, guidance=replace(cfg.guidance, kappa=0.0))


def first_latents(backbone: Backbone, images_BHW3: NDArray[np.uint8], ids: Tensor, variant: str) -> Tensor:
    """Return the scaled latents (B, C, h, w) float32 of images of any size, enlarged by Pillow's bicubic filter.

    Args:
        backbone: whose VAE.
        images_BHW3: uint8 RGB.
        ids: (B,) stimulus numbers, which decide the noise where the posterior is sampled.
        variant: of the method.
    """
    pixels = backbone.to_float(bicubic(images_BHW3, backbone.config.image_size))
    found = latents(backbone, pixels, POSTERIORS[variant], ids.cpu().numpy(), "first guess")
    return torch.from_numpy(found).to(backbone.device)


def check_shape(name: str, values: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise UserError where a decoded target has another shape per image than its reader takes.

    Args:
        name: of the target.
        values: (B, ...).
        shape: wanted behind B.
        what: who takes it, for the message.
    """
    if tuple(values.shape[1:]) != shape:
        raise UserError(
            f"decoded {name} has shape {tuple(values.shape[1:])} per image, but {what} takes {shape}. Were the targets"
            " extracted with other weights? Use the same backbone.*, target.* and method.* for all verbs."
        )


def ids_of(image_ids: Sequence[int], like: Tensor) -> Tensor:
    """Return stimulus numbers (B,) int64 on the device of a tensor."""
    return torch.as_tensor([int(i) for i in image_ids], dtype=torch.int64, device=like.device)
