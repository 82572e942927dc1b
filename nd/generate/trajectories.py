"""One or many points of a sweep over kappa and eta, sampled so that what they have in common is computed once.

A point guides the first steps with its kappa and leaves the others unguided. Points with one kappa share their guided
steps; all points share the starting noise. So there is one guided track per kappa, and from each an unguided one
branches off wherever a point's guidance ends; points that guide nothing are one track.

S samples, C h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """What a sweep varies."""

    kappa: float
    n_guided: int  # the first steps of the schedule

    @property
    def key(self) -> Point:
        """Equal for points with equal images."""
        return self if self.kappa > 0 and self.n_guided > 0 else Point(0.0, 0)


@dataclass(frozen=True)
class Track:
    """Latents on their way (S, C, h, w), and the step, from 1, at which each stopped being finite; 0: it is (S,)."""

    z: Tensor
    stopped: Tensor

    def moved(self, z: Tensor, step: int) -> Track:
        """Return the track after a step, counted from 0; samples that are no longer finite rest at zero from then."""
        finite = torch.isfinite(z).flatten(1).all(dim=1)
        stopped = torch.where(finite | (self.stopped > 0), self.stopped, step + 1)
        alive = (stopped == 0).view(-1, 1, 1, 1)
        return Track(torch.where(alive, z, 0), stopped)


class Trajectories:
    """The tracks of a sweep's points."""

    def __init__(self, points: Sequence[Point], start: Tensor) -> None:
        """Begin at the noised latents (S, C, h, w), which all points share."""
        self.points = {point.key for point in points}
        origin = Track(start, torch.zeros(len(start), dtype=torch.long, device=start.device))
        kappas = sorted({point.kappa for point in self.points if point.n_guided})
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
