"""Whose arithmetic the sampler follows: the points in which the published code, its description and ours differ.

abar is alpha_bar of the schedule, e the conditional noise prediction, z the noisy latents.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arithmetic:
    """The points of difference; the defaults are ours."""

    exact_x0: bool = True  # clean latents (z - sqrt(1 - abar) e) / sqrt(abar); else (z - (1 - abar) e) / sqrt(abar)
    mix_noisy: bool = False  # show sqrt(1 - abar) x0 + (1 - sqrt(1 - abar)) z to the image tower instead of x0
    clamp: bool = False  # clip that image to [0, 1], which stops the gradient of saturated pixels
    matched_start: bool = True  # noise to the level of the first step; else of int(int(S s) / S * 1000)
    own_noise: bool = True  # noise by seed, image and repeat; else the same draws for every image
    truncate: bool = False  # bytes by truncation instead of rounding


# paper: what is described, the derived formulas with nothing of the released code's own; the published text beyond the
# abstract was not at hand, so a formula printed differently there would have to be added here.
# released: HaoyyLi/NeuralDiffuser@9286cad src/modules/guided_diffusion.py:153-215 (x0, mix, clamp), :416-418 and
# scripts/recon.py:111,196 (start), :188-217 (noise, bytes).
VARIANTS = {
    "nd": Arithmetic(),
    "paper": Arithmetic(),
    "released": Arithmetic(
        exact_x0=False, mix_noisy=True, clamp=True, matched_start=False, own_noise=False, truncate=True
    ),
}
