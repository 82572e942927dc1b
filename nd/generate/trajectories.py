"""The way from noise to latents: starting noise, the DDIM schedule, and the tracks that the points of a sweep share.

Starting noise belongs to an image and a repeat and to nothing else. A point of a sweep over kappa and eta guides the
first steps with its kappa and leaves the others unguided. Points with one kappa share their guided steps; all points
share the starting noise. So there is one guided track per kappa, and from each an unguided one branches off wherever a
point's guidance ends; points that guide nothing are one track.

``alpha_bar`` is the cumulative product of 1 - beta: the share of signal power at a timestep.
B images, R repeats, S samples, C h w latent; z latents, eps predicted noise, x0 predicted clean latents.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from nd.config.fields import share_of
from nd.errors import UserError
from nd.targets.noise import keyed_normal

log = logging.getLogger(__name__)

DUMMY_DRAWS = 40  # of the released code between two repeats


def noise_for(seed: int, image_ids: Sequence[int], repeats: int, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise for every (image, repeat), a function of (seed, image id, repeat) alone.

    Args:
        seed: at least 0.
        image_ids: B stimulus numbers, at least 0.
        repeats: R, at least 1.
        shape: of one latent, for example (4, 16, 16).

    Returns:
        (B, R, *shape) float32.
    """
    noise = np.empty((len(image_ids), repeats, *shape), dtype=np.float32)
    for repeat in range(repeats):
        noise[:, repeat] = keyed_normal(seed, image_ids, repeat, shape)
    return torch.from_numpy(noise)


def shared_noise(seed: int, repeats: int, shape: Sequence[int]) -> Tensor:
    """Draw the noises that the released code gives to every image alike.

    It seeds torch anew for every image, draws one noise per repeat and ``DUMMY_DRAWS`` more after each, which it throws
    away (HaoyyLi/NeuralDiffuser@9286cad:src/recon.py:188-217). Drawn on the CPU, so that the images do not depend
    on the device; the released code drew on a GPU, which gives other numbers.

    Args:
        seed: of torch's generator.
        repeats: R, at least 1.
        shape: of one latent.

    Returns:
        (R, *shape) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(*shape, generator=generator) for _ in range((repeats - 1) * (1 + DUMMY_DRAWS) + 1)]
    return torch.stack(draws[:: 1 + DUMMY_DRAWS])


@dataclass(frozen=True)
class Schedule:
    """The sampled part of a DDIM schedule, noisiest step first."""

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]  # at each timestep
    alpha_bar_next: tuple[float, ...]  # at the timestep each step leads to
    start: float  # alpha_bar to which the clean latents are noised

    def __len__(self) -> int:
        return len(self.timesteps)

    def first(self, n: int) -> Schedule:
        """Return the noisiest n steps."""
        return Schedule(self.timesteps[:n], self.alpha_bar[:n], self.alpha_bar_next[:n], self.start)


def build_schedule(
    scheduler: Any, steps: int, strength: float, *, matched_start: bool = True, slot_above: bool = False
) -> Schedule:
    """Return the last ``int(steps * strength)`` steps of the DDIM schedule of ``steps`` steps (``share_of``).

    Args:
        scheduler: diffusers scheduler of the backbone, of any kind; its betas and spacing are taken over.
        steps: of the full schedule, 1 .. number of training timesteps.
        strength: in (0, 1].
        matched_start: noise is added at the first of these timesteps, the one sampling starts from. Else, as in the
            released code, at ``int(int(steps * strength) / steps * 1000)``: 740 for 50 steps and .75, while sampling
            starts at 721 (HaoyyLi/NeuralDiffuser@9286cad:src/recon.py:111,196), with steps counted in binary.
        slot_above: noise is added at the timestep of the full schedule that comes before the first of these, as
            CompVis' DDIM sampler does image to image: 741 for 50 steps and .75.

    Raises:
        UserError: if no step is left to run, the backbone does not predict noise, or its schedule has no timestep for
            so many steps.
    """
    ddim = DDIMScheduler.from_config(scheduler.config)
    if ddim.config["prediction_type"] != "epsilon":
        wrong = ddim.config["prediction_type"]
        raise UserError(
            f"the backbone predicts {wrong!r}; guided sampling is written for backbones that predict 'epsilon'."
        )
    if not 1 <= steps <= len(ddim.alphas_cumprod):
        raise UserError(f"method.steps={steps} is outside 1 .. {len(ddim.alphas_cumprod)}, the backbone's timesteps.")
    n = share_of(steps, strength, binary=not matched_start)
    if not 1 <= n <= steps:
        raise UserError(
            f"method.steps={steps} and method.strength={strength} leave int(steps * strength) = {n} steps to sample; "
            f"between 1 and {steps} are needed. Raise one of them, with strength in (0, 1]."
        )
    ddim.set_timesteps(steps)
    every = [int(t) for t in ddim.timesteps]
    timesteps, jump, last = every[-n:], len(ddim.alphas_cumprod) // steps, len(ddim.alphas_cumprod) - 1
    if timesteps[0] > last:
        raise UserError(
            f"method.steps={steps}: moved by the backbone's steps_offset ({ddim.config['steps_offset']}), sampling "
            f"would begin at timestep {timesteps[0]}, and the last is {last}. Give fewer steps."
        )
    if last - every[0] >= 2 * jump:
        _warn_of_lost_levels(steps, jump, every[0], last)
    alpha_bar = tuple(float(ddim.alphas_cumprod[t]) for t in timesteps)
    end = timesteps[-1] - jump
    # Each step leads to the level of the next one: timesteps that are not spaced as leading ones are no jump apart.
    after = (*alpha_bar[1:], float(ddim.alphas_cumprod[end] if end >= 0 else ddim.final_alpha_cumprod))
    noised_to = timesteps[0] if matched_start else int(n / steps * len(ddim.alphas_cumprod))
    if slot_above:
        noised_to += every[-n - 1] - timesteps[0] if n < steps else jump
    return Schedule(tuple(timesteps), alpha_bar, after, float(ddim.alphas_cumprod[min(noised_to, last)]))


def _warn_of_lost_levels(steps: int, jump: int, first: int, last: int) -> None:
    """Say that a schedule begins more than a step below the last timestep, and which numbers of steps do not."""
    n = last + 1
    whole = [other for other in range(1, n + 1) if n % other < n // other]
    log.warning(
        "method.steps=%d: the backbone takes timesteps %d apart from 0 on, so that the noisiest is %d of %d. With %d "
        "or %d steps it lies nearer the last.",
        *(steps, jump, first, last),
        *(max(other for other in whole if other < steps), min(other for other in whole if other > steps)),
    )


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Return clean latents noised to a level.

    Args:
        x0: clean latents, of any shape.
        noise: standard normal, of the same shape.
        alpha_bar: share of signal power, in [0, 1].
    """
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


def predict_x0(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """Return the clean latents that noisy ones and their predicted noise imply.

    Args:
        z: noisy latents, of any shape.
        eps: predicted noise, of the same shape.
        alpha_bar: of ``z``, in (0, 1].
    """
    return (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def ddim_step(z: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """Return the latents one deterministic DDIM step further (Song et al. 2021, equation 12 with sigma = 0).

    Args:
        z: noisy latents, of any shape.
        eps: predicted noise, of the same shape.
        alpha_bar: of ``z``.
        alpha_bar_next: of what is returned.
    """
    return alpha_bar_next**0.5 * predict_x0(z, eps, alpha_bar) + (1 - alpha_bar_next) ** 0.5 * eps


Strength = float | tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """What a sweep varies."""

    kappa: Strength  # of feature guidance, or the weight of each of several adapters
    n_guided: int  # the first steps of the schedule

    @property
    def key(self) -> Point:
        """Equal for points with equal images."""
        return self if np.any(np.greater(self.kappa, 0)) and self.n_guided > 0 else Point(0.0, 0)


@dataclass(frozen=True)
class Track:
    """Latents on their way (S, C, h, w), and the step, from 1, at which each stopped being finite; 0: it is (S,)."""

    z: Tensor
    stopped: Tensor

    def moved(self, z: Tensor, step: int) -> Track:
        """Return the track after a step; samples that are no longer finite rest at zero from then.

        Args:
            z: latents after the step (S, C, h, w).
            step: counted from 0.
        """
        finite = torch.isfinite(z).flatten(1).all(dim=1)
        stopped = torch.where(finite | (self.stopped > 0), self.stopped, step + 1)
        alive = (stopped == 0).view(-1, 1, 1, 1)
        return Track(torch.where(alive, z, 0), stopped)


class Trajectories:
    """The tracks of a sweep's points."""

    def __init__(self, points: Sequence[Point], start: Tensor) -> None:
        """Begin where all points begin.

        Args:
            points: of the sweep; those with equal images are one.
            start: noised latents (S, C, h, w).
        """
        self.points = {point.key for point in points}
        origin = Track(start, torch.zeros(len(start), dtype=torch.long, device=start.device))
        kappas = sorted({point.kappa for point in self.points if point.n_guided}, key=lambda k: np.ravel(k).tolist())
        self.guided = dict.fromkeys(kappas, origin)
        self.plain: dict[Point, Track] = {point: origin for point in self.points if not point.n_guided}

    def branch(self, step: int) -> None:
        """Let points whose guidance ends before this step go on without, and end guided tracks nobody needs."""
        for point in self.points:
            if point.n_guided == step and point.n_guided:
                self.plain[point] = self.guided[point.kappa]
        needed = {point.kappa for point in self.points if point.n_guided > step}
        self.guided = {kappa: track for kappa, track in self.guided.items() if kappa in needed}

    def end(self, point: Point) -> Track:
        """Return a point's track after the last step."""
        return self.plain[point.key]


def tracks_at(points: Sequence[Point], step: int, *, shared_first: bool = True) -> tuple[int, int]:
    """Return how many tracks are guided in a step, counted from 0, and how many are not.

    Args:
        points: of a sweep.
        step: counted from 0.
        shared_first: in the first step all guided tracks hold the same latents, and count once.
    """
    keys = {point.key for point in points}
    kappas = {point.kappa for point in keys if point.n_guided > step}
    once = step == 0 and shared_first
    return min(1, len(kappas)) if once else len(kappas), sum(point.n_guided <= step for point in keys)
