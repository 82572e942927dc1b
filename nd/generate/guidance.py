"""Feature guidance: how far a noisy image's features are from the decoded ones, and which way to move.

Reference: NeuralDiffuser (Li et al., IEEE TIP 2025), arithmetic as in HaoyyLi/NeuralDiffuser@9286cad
src/modules/stable_diffusion_pipe/guided_diffusion.py:153-215 and src/recon.py:131-162, with the differences that
``Arithmetic`` states.

B images, L layers, T tokens, D width, C h w latent, H W image. abar is alpha_bar of the schedule, e the conditional
noise prediction, z the noisy latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.errors import UserError
from nd.generate.components import guiding_layers
from nd.generate.trajectories import predict_x0

Decoder = Callable[[Tensor], Tensor]  # scaled latents (S, C, h, w) to unclamped images (S, 3, H, W)


@dataclass(frozen=True)
class Arithmetic:
    """The points of difference; the defaults are ours."""

    exact_x0: bool = True  # clean latents (z - sqrt(1 - abar) e) / sqrt(abar); else (z - (1 - abar) e) / sqrt(abar)
    mix_noisy: bool = False  # show sqrt(1 - abar) x0 + (1 - sqrt(1 - abar)) z to the image tower instead of x0
    clamp: bool = False  # clip that image to [0, 1], which stops the gradient of saturated pixels
    matched_start: bool = True  # noise to the level of the first step; else of int(int(S s) / S * 1000), int in binary
    own_noise: bool = True  # noise by seed, image and repeat; else the same draws for every image
    truncate: bool = False  # bytes by truncation instead of rounding
    slot_above: bool = False  # noise to the timestep before the first step, one slot of the schedule above it


# paper: what is described, the derived formulas with nothing of the released code's own; the published text beyond the
# abstract was not at hand, so a formula printed differently there would have to be added here.
# released: HaoyyLi/NeuralDiffuser@9286cad src/modules/stable_diffusion_pipe/guided_diffusion.py:153-215 (x0, mix,
# clamp), :416-418 and src/recon.py:111,196 (start), :188-217 (noise, bytes).
VARIANTS = {
    "nd": Arithmetic(),
    "paper": Arithmetic(),
    "released": Arithmetic(
        exact_x0=False, mix_noisy=True, clamp=True, matched_start=False, own_noise=False, truncate=True
    ),
}


def layer_weights(g_BLTD: Tensor, a_L: Sequence[float]) -> Tensor:
    """Return the weight of each layer, per image: a_l * (1/||g_l||) / sum_k (1/||g_k||).

    Args:
        g_BLTD: decoded features.
        a_L: factor of each layer, applied after the norms' shares were taken (so the weights need not sum to 1).

    Returns:
        (B, L) float32, no gradient.
    """
    norms_BL = g_BLTD.detach().float().flatten(2).norm(dim=2)
    # A layer that was decoded as all zeros gets the whole weight instead of a division by zero.
    inverse_BL = 1 / norms_BL.clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    return torch.as_tensor(a_L, device=g_BLTD.device) * inverse_BL / inverse_BL.sum(dim=1, keepdim=True)


def feature_loss(features: Sequence[Tensor], g_BLTD: Tensor, weights_BL: Tensor) -> Tensor:
    """Return each image's loss, sum_l w_l * mean((f_l - g_l)^2), as (B,).

    Nothing is averaged over images: the sum over a batch has, for every image, the gradient that the image
    has alone. (The released loss flattens the batch into one row, so that more images than one are an error.)

    Args:
        features: L tensors (B, T, D), of the image in its present state.
        g_BLTD: decoded features.
        weights_BL: of ``layer_weights``.
    """
    errors = [(f.to(g_BLTD.dtype) - g_BLTD[:, i]).square().flatten(1).mean(dim=1) for i, f in enumerate(features)]
    return (weights_BL * torch.stack(errors, dim=1)).sum(dim=1)


@dataclass(frozen=True)
class FeatureGuidance:
    """The direction, in latent space, in which the distance to the decoded features grows.

    The clean latents implied by the *conditional* noise prediction are decoded to an image, and the image goes
    through the image tower. The image is not clamped on the way to the tower: a clamp has no gradient where a
    pixel is saturated, so such pixels could never be corrected. ``arithmetic`` may ask for the released code's ways.
    """

    denoise: Callable[[Tensor], Tensor]  # noisy latents (B, C, h, w) to conditional noise prediction, same shape
    decode: Callable[[Tensor], Tensor]  # clean latents to images (B, 3, H, W), nominally in [0, 1], unclamped
    features: Callable[[Tensor], Sequence[Tensor]]  # images to L tensors (B, T, D)
    wanted: Tensor  # decoded features (B, L, T, D)
    weights: Tensor  # of the layers, (B, L)
    through_unet: bool = True  # False: the predicted noise counts as a constant
    arithmetic: Arithmetic = VARIANTS["nd"]
    loss_scale: float = 1.0  # keeps gradients in half precision above underflow; taken out again at the end

    def gradient(self, z_BChw: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return d loss / d z_t, the conditional noise prediction, and the loss of each image.

        Returns:
            gradient (B, C, h, w); noise prediction (B, C, h, w), to be used again for classifier-free guidance;
            losses (B,). None of them carries a graph.
        """
        with torch.enable_grad():
            z = z_BChw.detach().clone().requires_grad_(True)
            eps = self.denoise(z) if self.through_unet else self._constant_noise(z)
            image = self.decode(shown_latents(z, eps, alpha_bar, self.arithmetic))
            image = image.clamp(0, 1) if self.arithmetic.clamp else image
            loss_B = feature_loss(self.features(image), self.wanted, self.weights)
            (gradient,) = torch.autograd.grad(loss_B.sum() * self.loss_scale, z)
        return gradient / self.loss_scale, eps.detach(), loss_B.detach()

    def _constant_noise(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.denoise(z)


def shown_latents(z: Tensor, eps: Tensor, alpha_bar: float, arithmetic: Arithmetic) -> Tensor:
    """Return the latents whose image is compared: the clean ones that the noise prediction implies.

    The released code multiplies the noise by 1 - alpha_bar where the square root belongs, and mixes ``z`` back in
    (HaoyyLi/NeuralDiffuser@9286cad:src/modules/stable_diffusion_pipe/guided_diffusion.py:153-215).

    Args:
        z: noisy latents (B, C, h, w).
        eps: conditional noise prediction, same shape.
        alpha_bar: at the timestep, in (0, 1).
        arithmetic: whose ways.
    """
    share = (1 - alpha_bar) ** 0.5
    x0 = predict_x0(z, eps, alpha_bar) if arithmetic.exact_x0 else (z - share**2 * eps) / alpha_bar**0.5
    return share * x0 + (1 - share) * z if arithmetic.mix_noisy else x0


def kappa_at(kappa: float, schedule: str, step: int, n_steps: int) -> float:
    """Return kappa in a sampled step.

    Counted over all sampled steps, not over the guided ones: a step then has the same kappa whatever eta is, and sweeps
    share it.

    Args:
        kappa: as configured.
        schedule: 'constant'; 'falling', times 1 - step / n_steps; 'rising', times (step + 1) / n_steps.
        step: 0 .. n_steps - 1.
        n_steps: that are sampled.

    >>> [kappa_at(4.0, "falling", step, 4) for step in range(4)]
    [4.0, 3.0, 2.0, 1.0]
    """
    factor = {"constant": 1.0, "falling": 1 - step / n_steps, "rising": (step + 1) / n_steps}
    return kappa * factor[schedule]


def guided_noise(eps: Tensor, gradient: Tensor, alpha_bar: float, kappa: float | Tensor, *, normalise: bool) -> Tensor:
    """Return the noise prediction that makes the sampler descend the loss.

    As printed: eps + sqrt(1 - abar) * kappa * gradient, where a good kappa depends on the backbone, the tower and the
    image's size. With ``normalise`` the added term has kappa times the norm of ``eps``, per image, whatever the
    size of the gradient; an image whose gradient is zero is left alone.

    Args:
        eps: (B, C, h, w) after classifier-free guidance.
        gradient: of the loss with respect to z_t, same shape.
        alpha_bar: in (0, 1).
        kappa: at least 0; one number, or (B, 1, 1, 1).
        normalise: scale-free kappa.
    """
    if not normalise:
        return eps + (1 - alpha_bar) ** 0.5 * kappa * gradient
    return eps + kappa * norm_of(eps) * unit_vectors(gradient)


def norm_of(x_BChw: Tensor) -> Tensor:
    """Return each image's Euclidean norm, (B, 1, 1, 1) float32."""
    return x_BChw.float().flatten(1).norm(dim=1)[:, None, None, None]


def unit_vectors(x_BChw: Tensor) -> Tensor:
    """Return each image's direction: norm 1, or 0 where the image is zero; safe for values near underflow.

    What is not finite has none: not finite it stays, so that nobody takes it for an image that needs no change.
    """
    largest = x_BChw.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = torch.where(largest == 0, 0, x_BChw / torch.where(largest == 0, 1, largest))
    return scaled / norm_of(scaled).clamp_min(1)


def image_decoder(backbone: Backbone, kind: str) -> Decoder:
    """Return the decoder that ``guidance.decoder`` names; differentiable.

    full: the VAE as it is. half: the VAE of latents shrunk to half their side, about a quarter of the arithmetic; the
    image tower sees 224 px of Stable Diffusion's 512 anyway. tiny: the small autoencoder of ``backbone.tiny_vae``,
    trained to read the same latents.

    Raises:
        UserError: 'tiny' without weights.
    """
    return {"full": full, "half": half, "tiny": tiny}[kind](backbone)


def full(backbone: Backbone) -> Decoder:
    """The VAE."""
    return lambda latents: backbone.decode(latents, clamp=False)


def half(backbone: Backbone) -> Decoder:
    """The VAE at half the resolution."""

    def decode(latents: Tensor) -> Tensor:
        small = functional.interpolate(latents.float(), scale_factor=0.5, mode="bilinear", antialias=True)
        return backbone.decode(small, clamp=False)

    return decode


def tiny(backbone: Backbone) -> Decoder:
    """The small autoencoder."""
    model = backbone.tiny_vae

    def decode(latents: Tensor) -> Tensor:
        # It takes latents as the UNet has them, in units of its own (its factor is 1 where the VAE's is .18215).
        scaled = latents.to(backbone.dtype) / float(model.config["scaling_factor"])
        return (model.decode(scaled).sample + 1) / 2

    return decode


def check_guidance(cfg: Config) -> None:
    """Raise UserError for guidance that is out of range, or layers without a weight."""
    guidance, layers = cfg.guidance, guiding_layers(cfg)
    if not 0 <= guidance.eta <= 1:
        raise UserError(f"guidance.eta={guidance.eta} is the guided share of the steps and lies in [0, 1].")
    if not guidance.kappa >= 0:
        raise UserError(f"guidance.kappa={guidance.kappa} must be at least 0; 0 switches guidance off.")
    if guidance.kappa > 0 and len(guidance.layer_weights) != len(layers):
        raise UserError(
            f"guidance.layer_weights has {len(guidance.layer_weights)} weights for {len(layers)} layers "
            f"(target.layers={layers}). Give one weight per layer."
        )
