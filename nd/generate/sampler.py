"""The guided sampler: decoded latents, text condition and features of a batch of images to pictures.

B images, R repeats, S = B * R samples in flight, C h w latent, T tokens, D width, L layers, H W picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.tower import BlockFeatures
from nd.errors import UserError
from nd.generate.guidance import FeatureGuidance, guided_noise, layer_weights
from nd.generate.schedule import add_noise, build_schedule, ddim_step, share_of
from nd.schema import Config


class GuidedSampler:
    """DDIM image-to-image sampling with classifier-free guidance and, in its first steps, feature guidance.

    Steps with feature guidance run the conditional UNet once, with a graph, and use its output both for the gradient
    and for classifier-free guidance; the other steps run one UNet call on the unconditional and conditional halves
    together, without any graph. Nothing is decoded on the way except for the gradient.
    """

    def __init__(self, backbone: Backbone, cfg: Config) -> None:
        """Prepare for a configuration: its method, guidance and target.layers.

        Raises:
            UserError: settings out of range, or layers without a weight.
        """
        self.backbone = backbone
        self.guidance = cfg.guidance
        self.cfg_scale = cfg.method.cfg_scale
        self.schedule = build_schedule(backbone.scheduler, cfg.method.steps, cfg.method.strength)
        self.n_guided = share_of(len(self.schedule), cfg.guidance.eta) if cfg.guidance.kappa > 0 else 0
        self.layers = list(cfg.target.layers)
        self._check(cfg)
        with torch.no_grad():
            self.uncond_1TD = backbone.uncond()
        self.tower: Callable[[Tensor], Sequence[Tensor]] | None = None
        if self.n_guided:
            blocks = BlockFeatures(backbone.tower, self.layers)
            self.feature_shape = blocks.shape
            self.tower = lambda pictures: blocks(backbone.tower_input(pictures))

    def sample(self, z: Tensor, c: Tensor, g: Tensor | None, noise: Tensor, image_ids: Sequence[int] = ()) -> Tensor:
        """Return pictures of a batch of images.

        Args:
            z: (B, C, h, w) decoded scaled latents.
            c: (B, T, D) decoded text condition.
            g: (B, L, tokens, width) decoded features; may be None when nothing is guided.
            noise: (B, R, C, h, w) of ``noise_for``.
            image_ids: the images' names in messages.

        Returns:
            (B, R, 3, H, W) float32 in [0, 1].

        Raises:
            UserError: features of another backbone, or latents that stopped being finite.
        """
        n_images, n_repeats = noise.shape[:2]
        self._check_shapes(z, c, g, noise)
        state = add_noise(spread(z, n_repeats), noise.flatten(0, 1), self.schedule.alpha_bar[0])
        c_STD = spread(c, n_repeats)
        guide = self._guide(c_STD, spread(g, n_repeats)) if self.n_guided and g is not None else None
        finite = []
        for step, t in enumerate(self.schedule.timesteps):
            alpha_bar, alpha_bar_next = self.schedule.alpha_bar[step], self.schedule.alpha_bar_next[step]
            if guide is not None and step < self.n_guided:
                eps = self._guided_eps(guide(t), state, t, alpha_bar)
                state = ddim_step(state, eps, alpha_bar, alpha_bar_next)
            else:
                with torch.inference_mode():
                    state = ddim_step(state, self._eps(state, t, c_STD), alpha_bar, alpha_bar_next)
            finite.append(torch.isfinite(state).flatten(1).all(dim=1))
        self._check_finite(torch.stack(finite), image_ids, n_repeats)
        with torch.inference_mode():
            pictures = self.backbone.decode(state).float().clamp(0, 1)
        return pictures.clone().unflatten(0, (n_images, n_repeats))  # a clone is an ordinary tensor again

    def _unet(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        """Noise prediction (S, C, h, w) float32; the backbone computes in its own dtype."""
        dtype = self.backbone.dtype
        return self.backbone.unet(z.to(dtype), t, encoder_hidden_states=c.to(dtype)).sample.float()

    def _eps(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        """Noise prediction after classifier-free guidance, both halves in one UNet call."""
        if self.cfg_scale == 1:
            return self._unet(z, t, c)
        both = self._unet(torch.cat([z, z]), t, torch.cat([self._uncond(len(z)), c]))
        eps_uncond, eps_cond = both.chunk(2)
        return eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)

    def _guided_eps(self, guide: FeatureGuidance, z: Tensor, t: int, alpha_bar: float) -> Tensor:
        """Noise prediction after classifier-free and feature guidance."""
        gradient, eps_cond, _ = guide.gradient(z, alpha_bar)
        eps = eps_cond
        if self.cfg_scale != 1:
            with torch.no_grad():
                eps_uncond = self._unet(z, t, self._uncond(len(z)))
            eps = eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)
        return guided_noise(eps, gradient, alpha_bar, self.guidance.kappa, normalise=self.guidance.normalise)

    def _guide(self, c_STD: Tensor, g_SLTD: Tensor) -> Callable[[int], FeatureGuidance]:
        """Return what makes the guidance of one timestep."""
        assert self.tower is not None
        tower, weights_SL = self.tower, layer_weights(g_SLTD, self.guidance.layer_weights)

        def at(t: int) -> FeatureGuidance:
            return FeatureGuidance(
                denoise=lambda z: self._unet(z, t, c_STD),
                decode=lambda z: self.backbone.decode(z, clamp=False),
                features=tower,
                wanted=g_SLTD,
                weights=weights_SL,
                through_unet=self.guidance.through_unet,
            )

        return at

    def _uncond(self, n: int) -> Tensor:
        return self.uncond_1TD.expand(n, -1, -1)

    def _check(self, cfg: Config) -> None:
        guidance = cfg.guidance
        if not 0 <= guidance.eta <= 1:
            raise UserError(f"guidance.eta={guidance.eta} is the guided share of the steps and lies in [0, 1].")
        if not guidance.kappa >= 0:
            raise UserError(f"guidance.kappa={guidance.kappa} must be at least 0; 0 switches guidance off.")
        if self.n_guided and len(guidance.layer_weights) != len(self.layers):
            raise UserError(
                f"guidance.layer_weights has {len(guidance.layer_weights)} weights for {len(self.layers)} layers "
                f"(target.layers={self.layers}). Give one weight per layer."
            )

    def _check_shapes(self, z: Tensor, c: Tensor, g: Tensor | None, noise: Tensor) -> None:
        wanted = {"z": (z, self.backbone.latent_shape), "c": (c, tuple(self.uncond_1TD.shape[1:]))}
        for name, (values, shape) in wanted.items():
            if tuple(values.shape[1:]) != shape:
                raise UserError(
                    f"decoded {name} has shape {tuple(values.shape[1:])} per image but the backbone takes {shape}. "
                    "Were the targets extracted with another backbone? Use one backbone.* for all verbs."
                )
        if self.n_guided and (g is None or tuple(g.shape[1:]) != self.feature_shape):
            got = None if g is None else tuple(g.shape[1:])
            raise UserError(
                f"decoded g has shape {got} per image; guidance by target.layers={self.layers} of this image "
                f"tower takes {self.feature_shape}. Use one backbone.* and one target.layers for all verbs."
            )

    def _check_finite(self, finite_KS: Tensor, image_ids: Sequence[int], n_repeats: int) -> None:
        if bool(finite_KS.all()):
            return
        step, sample = (int(i) for i in (~finite_KS).nonzero()[0])
        image = image_ids[sample // n_repeats] if len(image_ids) else sample // n_repeats
        raise UserError(
            f"the latents of image {image}, repeat {sample % n_repeats}, stopped being finite at step {step + 1} of "
            f"{len(finite_KS)} with guidance.kappa={self.guidance.kappa}. Lower kappa, set guidance.normalise=true, or "
            "check that the decoded targets are finite and that backbone.dtype can hold them."
        )


def spread(x: Tensor, n_repeats: int) -> Tensor:
    """Repeat every image's row for each of its repeats: (B, ...) to (B * R, ...), repeats of an image side by side."""
    return x.repeat_interleave(n_repeats, dim=0)
