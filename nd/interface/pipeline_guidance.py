"""Feature guidance of anybody's diffusers pipeline by anybody's open_clip tower.

The gradient and the guided noise prediction are those of ``nd.generate.guidance``. They come in where the pipeline
calls its UNet, so that prompts, images, schedulers, adapters and callbacks stay the pipeline's own.

B images, S samples, L layers, T tokens, D width, C h w latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.tower import FILTERS, BlockFeatures
from nd.config import BackboneConfig, Config
from nd.config.check import build
from nd.config.fields import share_of
from nd.errors import UserError, report
from nd.generate.guidance import FeatureGuidance, check_guidance, guided_noise, image_decoder, kappa_at, layer_weights
from nd.generate.sampler import LOSS_SCALE, spread
from nd.interface.array_scores import channels_last
from nd.metrics.images import check_images, to_float

LAYERS = (0, 1, 2, 3, 4, 5)


@contextmanager
def guide_pipeline(
    pipeline: Any, tower: Any, features: Any, *, kappa: float, layers: Sequence[int] = LAYERS, **settings: Any
) -> Iterator[None]:
    """Steer what a pipeline samples inside the ``with`` block towards features of an image tower.

    Args:
        pipeline: of diffusers, with ``unet``, ``vae`` and a scheduler with ``alphas_cumprod``, whose model predicts
            noise: Stable Diffusion from text or from an image, with adapters, on any device, in any precision.
        tower: open_clip model whose image half is a plain vision transformer, on the same device.
        features: (B, L, T, D) float, the wanted ones, array or tensor on any device: decoded from voxels, or those of
            ``tower_features``. B divides the samples of a call; the samples of an image stand side by side, as
            ``num_images_per_prompt`` gives them.
        kappa: how strongly, at least 0; with ``normalise`` the guidance has kappa times the predicted noise's size.
        layers: L blocks of the tower, counted from 0.
        settings: further fields of the guidance group (``nd reconstruct --help``): ``eta``, the first share of the
            steps that is guided (default 0.2); ``layer_weights`` (all alike); ``normalise`` (True); ``through_unet``
            (True); ``schedule`` ('constant'); ``decoder`` ('full', or 'half').

    Raises:
        UserError: settings, features, tower or pipeline that do not fit; some are seen at the first step only.

    ::

        clip = open_clip.create_model("ViT-B-32-quickgelu", "openai").to("cuda").eval()
        pipeline = StableDiffusionImg2ImgPipeline.from_pretrained("CompVis/stable-diffusion-v1-4").to("cuda")
        wanted = nd.tower_features(clip, photo)
        with nd.guide_pipeline(pipeline, clip, wanted, kappa=0.3):
            image = pipeline("a photo", image=blurred, strength=0.75).images[0]
    """
    defaults = {"eta": 0.2, "layer_weights": [1.0] * len(layers), "normalise": True}
    values = defaults | settings | {"kappa": kappa}
    config, checked = build({"guidance": values, "target": {"name": "g", "layers": list(layers)}})
    if checked.all:
        raise UserError(report(checked.all))
    check_guidance(config)
    wanted = features if isinstance(features, Tensor) else torch.as_tensor(np.asarray(features))
    guide = PipelineGuide(pipeline, tower, wanted.detach().float(), config)
    handle = pipeline.unet.register_forward_hook(guide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def tower_features(tower: Any, images: Any, layers: Sequence[int] = LAYERS) -> Tensor:
    """Return what blocks of an image tower say about images: what ``guide_pipeline`` steers towards.

    Args:
        tower: open_clip model whose image half is a plain vision transformer.
        images: (B, H, W, 3) uint8 or (B, 3, H, W) float in [0, 1], RGB, of any side; brought to the tower's side.
        layers: blocks, counted from 0.

    Returns:
        (B, L, T, D) float32 on the tower's device: outputs of each block's MLP branch, class token first.

    Raises:
        UserError: images of other shapes or ranges, a tower of another kind, blocks that it has not.
    """
    checked = channels_last(images, "images", 4)
    check_images(checked, "images")
    backbone = _tower_of(tower)
    with torch.no_grad():
        seen = backbone.tower_input(to_float(checked).to(backbone.device))
        return torch.stack(BlockFeatures(tower.visual, layers)(seen), 1).float()


class PipelineGuide:
    """A forward hook of a UNet that adds guidance to its noise predictions in the first steps of a pipeline."""

    def __init__(self, pipeline: Any, tower: Any, features_BLTD: Tensor, config: Config) -> None:
        """Take what ``guide_pipeline`` was given, checked against each other."""
        self.pipeline, self.guidance = pipeline, config.guidance
        seen = _tower_of(tower)
        blocks = BlockFeatures(tower.visual, config.target.layers)
        if tuple(features_BLTD.shape[1:]) != blocks.shape:
            raise UserError(
                f"features have shape {tuple(features_BLTD.shape)}; (B, layers, tokens, width) = (B, "
                f"{', '.join(map(str, blocks.shape))}) of this tower were wanted."
            )
        _check_pipeline(pipeline)
        self.wanted_BLTD = features_BLTD.to(pipeline.unet.device)
        self.features = lambda images: blocks(seen.tower_input(images))
        own = Backbone(BackboneConfig(), pipeline.unet.device)
        own.dtype = pipeline.vae.dtype
        vars(own)["vae"] = pipeline.vae
        self.decode = image_decoder(own, self.guidance.decoder)

    def __call__(self, unet: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """Return the UNet's output, guided where the step is. Both halves of a pass over the unconditional and the
        conditional get the same term, which classifier-free guidance hands through."""
        inputs = dict(zip(("sample", "timestep"), given, strict=False)) | named
        t = inputs["timestep"]
        step, n_steps = self._place(t)
        if step >= share_of(n_steps, self.guidance.eta) or self.guidance.kappa == 0:
            return output
        eps, halves = output[0].float(), 2 if self.pipeline.do_classifier_free_guidance else 1
        first, last = eps.chunk(halves)[0], eps.chunk(halves)[-1]
        joint = first + self.pipeline.guidance_scale * (last - first)  # where there is one half, that half
        alpha_bar = float(self.pipeline.scheduler.alphas_cumprod[int(t)])
        gradient = self._gradient(unet, _last(inputs, halves), alpha_bar)
        kappa = kappa_at(self.guidance.kappa, self.guidance.schedule, step, n_steps)
        term = guided_noise(joint, gradient, alpha_bar, kappa, normalise=self.guidance.normalise) - joint
        guided = (eps + term.repeat(halves, 1, 1, 1)).to(output[0].dtype)
        return (guided, *output[1:]) if isinstance(output, tuple) else type(output)(sample=guided)

    def _place(self, timestep: Any) -> tuple[int, int]:
        """Number of this step, from 0, among those that the pipeline samples, and how many they are."""
        timesteps = self.pipeline.scheduler.timesteps
        n_steps = self.pipeline.num_timesteps
        return int((timesteps == timestep).nonzero()[0, 0]) - (len(timesteps) - n_steps), n_steps

    def _gradient(self, unet: Any, inputs: dict[str, Any], alpha_bar: float) -> Tensor:
        z_SChw = inputs.pop("sample")
        n_repeats, rest = divmod(len(z_SChw), len(self.wanted_BLTD))
        if rest or not n_repeats:
            raise UserError(f"features of {len(self.wanted_BLTD)} images do not divide {len(z_SChw)} samples.")
        wanted_SLTD = spread(self.wanted_BLTD, n_repeats)
        guidance = FeatureGuidance(
            # Not unet(...), which would come back here.
            denoise=lambda z: unet.forward(z.to(z_SChw.dtype), **inputs)[0].float(),
            decode=self.decode,
            features=self.features,
            wanted=wanted_SLTD,
            weights=layer_weights(wanted_SLTD, self.guidance.layer_weights),
            through_unet=self.guidance.through_unet,
            loss_scale=LOSS_SCALE.get(z_SChw.dtype, 1.0),
        )
        return guidance.gradient(z_SChw.float(), alpha_bar)[0]


def _tower_of(tower: Any) -> Backbone:
    """A backbone that has the tower alone, and prepares images as the tower says it was trained on them."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import get_model_preprocess_cfg

    if not hasattr(tower, "visual"):
        raise UserError(f"the image tower is a {type(tower).__name__}; a model of open_clip.create_model was wanted.")
    # Of a tower in half precision, open_clip leaves embeddings and norms in float32; images meet the convolution first.
    first = getattr(tower.visual, "conv1", None) or tower.visual
    how, weight = get_model_preprocess_cfg(tower), next(first.parameters())
    method = how.get("interpolation", "bicubic")
    config = BackboneConfig(
        tower_size=tower.visual.image_size[0],
        tower_mean=list(how.get("mean") or OPENAI_DATASET_MEAN),
        tower_std=list(how.get("std") or OPENAI_DATASET_STD),
        tower_filter=method if method in FILTERS else "bicubic",
    )
    backbone = Backbone(config, weight.device)
    backbone.dtype = weight.dtype
    return backbone


def _check_pipeline(pipeline: Any) -> None:
    """Raise UserError for a pipeline whose UNet's output is not noise added to the VAE's latents."""
    kind = getattr(pipeline.scheduler, "config", {}).get("prediction_type", "epsilon")
    if not hasattr(pipeline.scheduler, "alphas_cumprod") or kind != "epsilon":
        raise UserError(
            f"the pipeline's {type(pipeline.scheduler).__name__} predicts {kind!r}; guidance is written for diffusion "
            "models that predict noise ('epsilon') under a schedule with alphas_cumprod, such as Stable Diffusion 1."
        )
    channels, latent = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != latent:
        raise UserError(f"the pipeline's UNet takes {channels} channels, its VAE has {latent}; they must be the same.")


def _last(named: Any, halves: int) -> Any:
    """Of tensors by name, however nested, the rows of the conditional half."""
    if isinstance(named, dict):
        return {name: _last(value, halves) for name, value in named.items()}
    return named.chunk(halves)[-1] if isinstance(named, Tensor) and named.ndim else named
