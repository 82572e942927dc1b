"""Stage 1, image-to-image sampling that can be differentiated, and the distance that stage 2 makes smaller.

Reference: ReedOnePeck/MindDiffuser@c9773ac:Image reconstruction/Reconstruction.py:98-123 (loss), 357-392 (sampling).

S samples (images x repeats), C h w latent, T tokens, D width, L layers, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nd.backbone.loading import Backbone
from nd.backbone.tower import BlockFeatures
from nd.config import Config
from nd.config.fields import share_of
from nd.errors import UserError
from nd.generate.components import guiding_layers
from nd.generate.denoiser import Denoiser
from nd.generate.guidance import feature_loss, layer_weights
from nd.generate.minddiffuser.components import MindDiffuserSettings
from nd.generate.plan import Plan, in_parts
from nd.generate.sampler import LOSS_SCALE, arrange
from nd.generate.trajectories import Schedule, add_noise, build_schedule, ddim_step

REHEARSED = 2  # steps: each further one keeps no more than the latents it starts from


def schedule_of(scheduler: Any, method: MindDiffuserSettings) -> Schedule:
    """Return the steps that are run, with the noise level that the latents are brought to.

    As released, that level (step 37 of 50) is not the one at which sampling begins (step 34).

    Raises:
        UserError: no step is left to run.
    """
    schedule = build_schedule(scheduler, method.steps, method.strength)
    if not method.noise_strength:
        return schedule
    whole = build_schedule(scheduler, method.steps, 1.0)  # noisiest first
    return replace(schedule, start=whole.alpha_bar[-1 - share_of(method.steps, method.noise_strength)])


def structure_weights(g_SLTD: Tensor, method: MindDiffuserSettings) -> Tensor:
    """Return the weight (S, L) of each layer's mean of squares.

    With ``norm_weights`` as in ``MSE_CLIP_mask``: a_l / ||g_l||, over the sum of 1 / ||g_k||. Without, a_l times the
    numbers of a layer, which makes sums of the means (Lu et al. 2023, equation 5).

    Args:
        g_SLTD: decoded features, 0 where nothing was decoded.
        method: its layer_weights and norm_weights.
    """
    if method.norm_weights:
        return layer_weights(g_SLTD, method.layer_weights)
    a_L = torch.as_tensor(method.layer_weights, device=g_SLTD.device, dtype=g_SLTD.dtype)
    return (a_L * g_SLTD[0, 0].numel()).expand(len(g_SLTD), -1)


def structure_loss(features: Sequence[Tensor], g_SLTD: Tensor, weights_SL: Tensor) -> Tensor:
    """Return each sample's distance (S,) from the features that were decoded.

    Columns that a mapper left out are exactly 0 in its predictions (``mapper.keep``); they are left out on both sides,
    and the mean is over all numbers of a layer, as released.

    Args:
        features: L tensors (S, T, D) of the image.
        g_SLTD: decoded features.
        weights_SL: of ``structure_weights``.
    """
    return feature_loss([f * (g_SLTD[:, i] != 0) for i, f in enumerate(features)], g_SLTD, weights_SL)


class ImageToImage:
    """DDIM from noised latents under a text condition, with classifier-free guidance; differentiable in both."""

    lighter = "method.optimise=none"
    knows_lanes = False
    leanest = 2  # 1: the activations of a UNet call are computed again, 2: those of its blocks too

    def __init__(
        self, backbone: Backbone, cfg: Config, plan: Plan | None = None, uncond_1TD: Tensor | None = None
    ) -> None:
        """Prepare for a configuration.

        Args:
            backbone: diffusion model and, for stage 2, image tower.
            cfg: its method, and target.tokens and target.layers of c and g.
            plan: samples at once; by default whatever is fastest.
            uncond_1TD: the encoded empty caption; by default the backbone's, of as many tokens as c has.

        Raises:
            UserError: a schedule without steps, or tokens that the text encoder does not have.
        """
        arrange(backbone)
        assert isinstance(cfg.method, MindDiffuserSettings)
        self.backbone, self.cfg, self.method = backbone, cfg, cfg.method
        self.schedule = schedule_of(backbone.scheduler, self.method)
        if uncond_1TD is None:
            with torch.inference_mode(False), torch.no_grad():
                uncond_1TD = backbone.encode_text([""], getattr(cfg.decoding("c").target, "tokens", 0))
        self.denoise = Denoiser(backbone, cfg, uncond_1TD)
        self.plan = plan or Plan.for_speed()
        self.guides = bool(self.method.moved)
        if self.guides:
            self.blocks = BlockFeatures(backbone.tower, guiding_layers(cfg))

    # ---- what memory is counted by -----------------------------------------------------------------------------

    @property
    def networks(self) -> tuple[str, ...]:
        """The backbone's modules that it runs."""
        return ("unet", "vae", *(("clip",) if self.guides else ()))

    @property
    def steps_kept(self) -> int:
        """All of them: nothing is given back before the image is looked at."""
        return len(self.schedule)

    @property
    def recompute(self) -> bool:
        """Whether the activations of each UNet call are computed again in the backward pass."""
        return self.plan.checkpoint > 0

    def over(self, backbone: Backbone, cfg: Config) -> ImageToImage:
        """Return the same over another backbone."""
        return ImageToImage(backbone, cfg, self.plan, self.denoise.uncond_1TD.to(backbone.device))

    def rehearse(self, n: int) -> None:
        """Go through the work with a graph, of n samples, on tensors without contents."""
        device, whole = self.backbone.device, self.schedule
        shapes = {"z": self.backbone.latent_shape, "c": self.denoise.uncond_1TD.shape[1:], "g": self.blocks.shape}
        z, c, g = (torch.empty(n, *shape, device=device) for shape in shapes.values())
        left_out = [torch.empty_like(z) for _ in whole.timesteps[REHEARSED:]] if self.recompute else []
        if self.recompute:
            self.schedule = whole.first(REHEARSED)
        try:
            self.gradient(z, c, torch.empty_like(z), g, structure_weights(g, self.method))
        finally:
            self.schedule = whole
            left_out.clear()  # what those steps would keep was alive until here

    def use(self, plan: Plan) -> None:
        """Take a plan and set the networks up for it."""
        self.plan = plan
        replace(plan, checkpoint=max(plan.checkpoint - 1, 0)).apply(self.backbone)

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def latents(self, z: Tensor, c: Tensor, noise: Tensor) -> Tensor:
        """Return the latents (S, C, h, w) that sampling ends with. Differentiable in z and c.

        Args:
            z: clean latents (S, C, h, w).
            c: text condition (S, T, D).
            noise: standard normal, of the shape of z.
        """
        x, graph = add_noise(z, noise, self.schedule.start), torch.is_grad_enabled()
        schedule = self.schedule
        for t, abar, after in zip(schedule.timesteps, schedule.alpha_bar, schedule.alpha_bar_next, strict=True):
            if graph and self.recompute:
                eps: Any = checkpoint(self.denoise, x, t, c, abar, use_reentrant=False, preserve_rng_state=False)
            else:
                eps = self.denoise(x, t, c, abar)
            x = ddim_step(x, eps, abar, after)
        return x

    def gradient(self, z: Tensor, c: Tensor, noise: Tensor, g: Tensor, weights_SL: Tensor) -> tuple[Tensor, ...]:
        """Return the loss, the latents that sampling ends with, and the gradient of the loss by each moved input.

        Args:
            z, c, noise: as of ``latents``.
            g: decoded features (S, L, T, D).
            weights_SL: of ``structure_weights``.

        Returns:
            loss (S,), latents (S, C, h, w), then gradients by ``method.moved`` in its order; none carries a graph.
        """
        scale = LOSS_SCALE.get(self.backbone.dtype, 1.0)
        with torch.enable_grad():
            leaves = {"z": z.detach().clone(), "c": c.detach().clone()}
            moved = [leaves[name].requires_grad_(True) for name in self.method.moved]
            latents = self.latents(leaves["z"], leaves["c"], noise)
            images = self.backbone.decode(latents, clamp=self.method.clamp)
            features = self.blocks(self.backbone.tower_input(images))
            loss_S = structure_loss(features, g, weights_SL)
            gradients = torch.autograd.grad(loss_S.sum() * scale, moved)
        return loss_S.detach(), latents.detach(), *(found / scale for found in gradients)

    def images(self, z: Tensor, c: Tensor, noise: Tensor) -> Tensor:
        """Return the images (S, 3, H, W) float32 in [0, 1], sampled without a graph."""
        with torch.inference_mode():
            latents = in_parts(self.latents, self.plan.plain, z, c, noise)
            found: Tensor = in_parts(lambda x: self.backbone.decode(x).float(), self.plan.decode, latents)
        return found.clone()  # an ordinary tensor again

    def check_shapes(self, z: Tensor, c: Tensor, g: Tensor | None) -> None:
        """Raise UserError for decoded targets of another backbone, of other layers, or of another number of tokens."""
        wanted, got = tuple(self.denoise.uncond_1TD.shape[1:]), tuple(c.shape[1:])
        if got != wanted:
            raise UserError(
                f"decoded c has {got[0]} tokens of width {got[1]} per image, but target.tokens of c and the text "
                f"encoder ask for {wanted[0]} of width {wanted[1]}. Decode c with the same target.tokens and backbone "
                "as it is used with."
            )
        if tuple(z.shape[1:]) != self.backbone.latent_shape:
            raise UserError(
                f"decoded z has shape {tuple(z.shape[1:])} per image, but the backbone takes "
                f"{self.backbone.latent_shape}. Were the targets extracted with another backbone? Use one backbone.* "
                "for all verbs."
            )
        if self.guides and (g is None or tuple(g.shape[1:]) != self.blocks.shape):
            raise UserError(
                f"decoded g has shape {None if g is None else tuple(g.shape[1:])} per image, but target.layers of this "
                f"image tower give {self.blocks.shape} (layers, tokens, width). Were the features extracted with "
                "another tower? Use one backbone.image_tower and one target.layers for all verbs."
            )
