"""Brain-Diffuser (Ozcelik & VanRullen, Sci Rep 2023): a first guess by VDVAE, sampled anew under image and text.

Reference: ozcelikfu/brain-diffuser@31d52c0:scripts/vdvae_reconstruct_images.py and
versatilediffusion_reconstruct_images.py. The 31 decoded layers of latents become an image of 64 px, which is enlarged
by Pillow's bicubic filter and encoded; sampling runs int(50 * .75) steps with scale 7.5 under the decoded CLIP tokens,
.6 of the image's branch and .4 of the text's.

B images, C h w latent, T tokens, D width, P latent numbers of VDVAE, S side of its images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.clip import Clip
from nd.backbone.loading import DTYPES, Backbone
from nd.backbone.pillow import bicubic
from nd.backbone.vdvae.images import to_uint8
from nd.backbone.vdvae.loading import vdvae_of
from nd.backbone.vdvae.model import Vdvae
from nd.backbone.versatile import VersatileBackbone
from nd.config import Config
from nd.errors import UserError
from nd.generate.base import Reconstructions
from nd.generate.floors import Alone
from nd.generate.guided_diffusion import GuidedDiffusion
from nd.generate.image_to_image import (
    FIRST_AT_ONCE,
    ImageToImage,
    check_shape,
    first_latents,
    ids_of,
    samplers_of,
)
from nd.generate.plan import Plan, in_parts
from nd.targets.noise import keyed_generator, keyed_normal

# Of VDVAE's draws: the bytes "guess", beyond any seed one would think of, so that they are never the sampler's noise.
DRAWS_SEED = 0x6775657373
CONDITIONS = ("clip_vision", "clip_text")  # in the order of the tokens


class FirstGuess:
    """VDVAE's image of its decoded latents."""

    def __init__(self, model: Vdvae, seed: int, *, sample: bool) -> None:
        """Take the network.

        Args:
            model: with its weights.
            seed: of what is drawn.
            sample: draw the layers that were not decoded and the pixels, as published; else take the most likely ones.
        """
        self.model, self.seed, self.sample = model, DRAWS_SEED + seed, sample

    def __call__(self, image_ids: Sequence[int], latents_BP: Tensor, at_once: int) -> Tensor:
        """Return images (B, S, S, 3) uint8 on the CPU.

        Raises:
            UserError: P fits no number of layers, or nothing finite comes of an image.
        """
        found: Tensor = in_parts(self._images, at_once, latents_BP, ids_of(image_ids, latents_BP))
        return found

    def _images(self, latents_BP: Tensor, ids_B: Tensor) -> Tensor:
        ids, latents = ids_B.tolist(), self.model.split(latents_BP)
        if not self.sample:
            return _bytes(ids, self.model.picture(self.model.decode(latents)))
        described = self.model.decode(latents, lambda layer, shape: self._normal(ids, layer, shape))
        uses = iter(range(len(self.model.shape.decoder_blocks), 1 << 31))  # beyond the layers, each once
        return _bytes(ids, self.model.picture(described, lambda shape: self._uniform(ids, next(uses), shape)))

    def _normal(self, ids: Sequence[int], layer: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(keyed_normal(self.seed, ids, layer, shape[1:]))

    def _uniform(self, ids: Sequence[int], use: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.stack([keyed_generator(self.seed, i, use).random(shape[1:]) for i in ids]))


def _bytes(ids: Sequence[int], pictures_B3SS: Tensor) -> Tensor:
    """Return images as bytes, which would hide what is not finite."""
    bad = (~pictures_B3SS.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"VDVAE's image of the decoded latents of image {ids[bad[0]]} is not finite. Give target vdvae"
            " target.precision=float32, or look at its predictions."
        )
    return to_uint8(pictures_B3SS).cpu()


class DualStart:
    """The first guess as a latent, and the decoded tokens of image and text one after the other."""

    def __init__(self, backbone: VersatileBackbone, guess: FirstGuess | None, variant: str) -> None:
        """Take the backbone, the first guess (None: nothing but noise to start from) and whose arithmetic."""
        self.backbone, self.guess, self.variant = backbone, guess, variant

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor], at_once: int) -> tuple[Tensor, Tensor]:
        """Return first latents (B, C, h, w) and conditions (B, T, D); a branch without a share has the empty one's."""
        clip = self.backbone.conditions
        tokens = []
        for name, shape, empty in zip(
            CONDITIONS, (clip.vision_shape, clip.text_shape), self.backbone.empty_conditions, strict=True
        ):
            values = features.get(name, empty.expand(len(image_ids), -1, -1))
            check_shape(name, values, shape, f"Versatile Diffusion with target.clip={clip.source}")
            tokens.append(values)
        return self._latents(image_ids, features, at_once), torch.cat(tokens, dim=1)

    def _latents(self, image_ids: Sequence[int], features: Mapping[str, Tensor], at_once: int) -> Tensor:
        backbone = self.backbone
        if self.guess is None:
            return torch.zeros(len(image_ids), *backbone.latent_shape, device=backbone.device)
        images = self.guess(image_ids, features["vdvae"], at_once)
        encode = lambda part, ids: first_latents(backbone, part.numpy(), ids, self.variant)  # noqa: E731
        found: Tensor = in_parts(encode, at_once, images, ids_of(image_ids, images))
        return found


class DualGuided(GuidedDiffusion):
    """The sampler at one share of the text; samplers of other shares run the same UNet and leave theirs in it."""

    text_share = 0.5

    def plan_for(self, batches: Sequence[int]) -> Plan:
        """Return the fastest plan, counted with this share."""
        self._mix()
        return super().plan_for(batches)

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images under this share."""
        self._mix()
        return super().__call__(image_ids, features)

    def _mix(self) -> None:
        self.sampler.backbone.unet.mixing.share = self.text_share


def _guess(cfg: Config, backbone: Backbone) -> FirstGuess:
    target = cfg.decoding("vdvae").target
    model = vdvae_of(backbone, target.vdvae, target.precision)
    return FirstGuess(model, cfg.seed, sample=cfg.method.vdvae_draws == "sample")


def build(cfgs: Sequence[Config], device: torch.device) -> ImageToImage:
    """Load what is needed on a device, and prepare a sampler for each configuration of a sweep."""
    cfg = cfgs[0]
    target = cfg.decoding(next(name for name in CONDITIONS if name in cfg.method.targets)).target
    clip = Clip(target.clip, device, DTYPES[target.precision])
    backbone = VersatileBackbone(cfg.backbone, cfg.method.versatile, clip, device)
    guess = _guess(cfg, backbone) if "vdvae" in cfg.method.targets else None
    samplers: list[Any] = samplers_of(backbone, cfgs, DualGuided)
    for one, own in zip(samplers, cfgs, strict=True):
        one.text_share = own.method.text_share
    return ImageToImage(DualStart(backbone, guess, cfg.method.variant), samplers)


def build_first_stage(cfgs: Sequence[Config], device: torch.device) -> Alone:
    """Prepare the first stage alone; its images have the backbone's size."""
    (cfg,) = cfgs
    guess, size = _guess(cfg, Backbone(cfg.backbone, device)), cfg.backbone.image_size

    def single(image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            return bicubic(guess(image_ids, features["vdvae"], FIRST_AT_ONCE).numpy(), size)[:, None]

    return Alone(single)
