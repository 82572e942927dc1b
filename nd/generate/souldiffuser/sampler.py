"""Sampling under adapters: unguided DDIM whose UNet is told, in its first steps, what edge map and mosaic show.

Points of a sweep differ in the weights omega of the adapters and in how many steps they act in. What points have in
common is sampled once (``nd.generate.trajectories``): those of equal weights share the steps in which adapters act, and
those without any are one.

Shapes: B images, R repeats, S = B * R samples, C h w latent or features, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.generate.guidance import Arithmetic
from nd.generate.sampler import COST, GuidedSampler, Preview, Sampled, Tracks
from nd.generate.souldiffuser.adapters import weighed
from nd.generate.souldiffuser.components import ADAPTERS, SoulDiffuserSettings
from nd.generate.trajectories import Point, tracks_at

Features = Mapping[str, Sequence[Tensor]]  # of each adapter that acts, (B, C, h, w) for each block of the UNet


def point_of(cfg: Config) -> Point:
    """Return what a configuration asks of a sweep: the weights of the adapters, and the steps that they act in."""
    method = cfg.method
    assert isinstance(method, SoulDiffuserSettings)
    return Point(method.omegas, method.adapted_steps)


class AdaptedSampler(GuidedSampler):
    """The sampler of guided diffusion, of which adapters take the place of guidance."""

    lighter = "trainer.batch_size=1"

    def __init__(self, backbone: Backbone, cfg: Config, points: Sequence[Point]) -> None:
        """Prepare for a configuration of ``unguided`` and the points of a sweep.

        Args:
            backbone: an ``AdaptedBackbone``, or any where no adapter acts.
            cfg: schedule and scales.
            points: of ``point_of``.
        """
        super().__init__(backbone, cfg, [Point(0.0, 0)], arithmetic=Arithmetic())
        self.points = list(points)

    @property
    def networks(self) -> tuple[str, ...]:
        """The backbone's modules that it runs, adapters among them."""
        acting = {name for point in self.points for name in acting_in(point)}
        return (*super().networks, *(f"{name}_adapter" for name in ADAPTERS if name in acting))

    def over(self, backbone: Backbone, cfg: Config) -> AdaptedSampler:
        """Return the same over another backbone."""
        return AdaptedSampler(backbone, cfg, self.points)

    def sample_under(
        self, z: Tensor, c: Tensor, adapters: Features, noise: Tensor, preview: Preview | None = None
    ) -> list[Sampled]:
        """Return what each point makes of a batch of images.

        Args:
            z: (B, C, h, w) decoded scaled latents.
            c: (B, T, D) text condition.
            adapters: features of every adapter that some point gives a weight.
            noise: (B, R, C, h, w) of ``noise_for``.
            preview: as of ``sample``.

        Raises:
            UserError: latents or conditions of another backbone.
        """
        self._check_shapes(z, c, None)
        n_repeats = noise.shape[1]

        def adapted(tracks: Tracks, step: int, c_STD: Tensor) -> Tracks:
            moved: Tracks = {}
            for omegas, track in tracks.items():
                assert isinstance(omegas, tuple)
                named = {name: omega for name, omega in zip(ADAPTERS, omegas, strict=True) if omega}

                def added(rows_S: Tensor, named: Mapping[str, float] = named) -> list[Tensor]:
                    images = rows_S // n_repeats  # repeats of an image stand side by side
                    return weighed([[m[images] for m in adapters[name]] for name in named], list(named.values()))

                moved[omegas] = self._plain_step(track, step, c_STD, added)
            return moved

        return self._walked(z, c, noise, adapted, preview)

    @cached_property
    def _all(self) -> float:
        """What sampling all points costs a sample: an adapted step costs what a plain one does."""
        tracks = sum(sum(tracks_at(self.points, step, shared_first=False)) for step in range(len(self.schedule)))
        return tracks * COST["plain"] + len(self.points) * COST["decode"]


def acting_in(point: Point) -> list[str]:
    """Return the adapters that a point gives a weight."""
    omegas = point.key.kappa
    return [name for name, omega in zip(ADAPTERS, omegas, strict=True) if omega] if isinstance(omegas, tuple) else []


def image_features(adapter: torch.nn.Module, image_BCSS: Tensor) -> list[Tensor]:
    """Return an adapter's features (B, C, h, w) of each block, of each image by itself.

    One image at a time: features are made once for all steps, and then do not depend on the batch to the last bit.

    Args:
        adapter: a T2IAdapter.
        image_BCSS: what it reads, in [0, 1].
    """
    dtype = next(adapter.parameters()).dtype
    with torch.inference_mode():
        each = [adapter(one[None].to(dtype)) for one in image_BCSS]
    return [torch.cat(block).clone() for block in zip(*each, strict=True)]
