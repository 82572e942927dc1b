"""Guided DDIM sampling of a batch of images, several noises each, at one or many points of guidance.

Reference: HaoyyLi/NeuralDiffuser@9286cad:src/modules/stable_diffusion_pipe/guided_diffusion.py. Where arithmetic may
follow it or not is in ``nd.generate.guidance``; the order of work is ours and changes images by rounding alone
(``nd.generate.plan``).

B images, R repeats, S = B * R samples, C h w latent, T tokens, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.tower import BlockFeatures
from nd.config import Config
from nd.errors import UserError
from nd.generate.components import COST, guiding_layers
from nd.generate.denoiser import Denoiser
from nd.generate.guidance import (
    VARIANTS,
    Arithmetic,
    FeatureGuidance,
    check_guidance,
    guided_noise,
    image_decoder,
    kappa_at,
    layer_weights,
)
from nd.generate.plan import Plan, in_parts
from nd.generate.trajectories import (
    Point,
    Strength,
    Track,
    Trajectories,
    add_noise,
    build_schedule,
    ddim_step,
    tracks_at,
)

LOSS_SCALE = {torch.float16: 2.0**16}  # the released code's kappa, inside the loss, serves it in the same way
Preview = Callable[[int, Tensor], object]
Tracks = dict[Strength, Track]
GuidedStep = Callable[[Tracks, int, Tensor], Tracks]  # of tracks, step and condition (S, T, D)
Added = Callable[[Tensor], Sequence[Tensor]]  # rows (S,) of samples to what is added inside the UNet for them


@dataclass(frozen=True)
class Sampled:
    """What one point of a sweep gave for a batch."""

    images: Tensor  # (B, R, 3, H, W) float32 in [0, 1]
    stopped: Tensor  # (B, R) step, from 1, at which the latents stopped being finite; 0 where they did not


def point_of(cfg: Config) -> Point:
    """Return what a configuration asks of a sweep: kappa, and the number of guided steps."""
    return Point(cfg.guidance.kappa, cfg.guided_steps)


class GuidedSampler:
    """DDIM image-to-image sampling with classifier-free guidance and, in its first steps, feature guidance.

    A guided step runs the conditional UNet once, with a graph, and uses its output both for the gradient and for
    classifier-free guidance. Nothing is decoded on the way except for the gradient.
    """

    lighter = "guidance.decoder=half"
    leanest = 1  # the blocks' activations are computed again
    steps_kept = 1  # each guided step is a graph of its own

    def __init__(
        self,
        backbone: Backbone,
        cfg: Config,
        points: Sequence[Point] = (),
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """Prepare for a configuration: its method, guidance and target.layers.

        Args:
            backbone: diffusion model and image tower.
            cfg: its kappa and eta are those of the one point that is sampled when no points are given.
            points: of a sweep.
            arithmetic: whose; by default that of NeuralDiffuser in the method's variant.

        Raises:
            UserError: settings out of range, or layers without a weight.
        """
        check_guidance(cfg)
        arrange(backbone)
        self.cfg, self.backbone, self.guidance = cfg, backbone, cfg.guidance
        self.arithmetic = arithmetic or VARIANTS[cfg.method.variant]
        self.schedule = build_schedule(
            backbone.scheduler,
            cfg.method.steps,
            cfg.method.strength,
            matched_start=self.arithmetic.matched_start,
            slot_above=self.arithmetic.slot_above,
        )
        self.points = list(points) or [point_of(cfg)]
        self.denoise = Denoiser(backbone, cfg)
        # Parts do not run side by side while the UNet is compiled, or its attention listened to.
        self.knows_lanes = not cfg.trainer.compile and self.denoise.attention is None
        self.plan = Plan.for_speed()  # until another is taken
        self.watch: Callable[[float], object] | None = None  # called with the share of a batch that is done
        self._done = 0.0
        self.tower: Callable[[Tensor], Sequence[Tensor]] | None = None
        if any(point.n_guided for point in self.points):
            blocks = BlockFeatures(backbone.tower, guiding_layers(cfg))
            self.feature_shape = blocks.shape
            self.tower = lambda images: blocks(backbone.tower_input(images))
            self.decode = image_decoder(backbone, cfg.guidance.decoder)

    @property
    def guides(self) -> bool:
        """Whether any step holds a graph."""
        return self.tower is not None

    @property
    def networks(self) -> tuple[str, ...]:
        """The backbone's modules that it runs."""
        tiny = ("tiny_vae",) if self.guides and self.guidance.decoder == "tiny" else ()
        return ("unet", "vae", *(("clip",) if self.guides else ()), *tiny)

    def over(self, backbone: Backbone, cfg: Config) -> GuidedSampler:
        """Return the same over another backbone."""
        return GuidedSampler(backbone, cfg, self.points)

    def rehearse(self, n: int) -> None:
        """Go through a guided step, of n samples, on tensors without contents."""
        shapes = (self.denoise.uncond_1TD.shape[1:], self.feature_shape, self.backbone.latent_shape)
        c, g, z = (torch.empty(n, *shape, device=self.backbone.device) for shape in shapes)
        t, abar, _ = self._at(0)
        self.guide(c, g, t).gradient(z, abar)

    def use(self, plan: Plan) -> None:
        """Take a plan and set the networks up for it."""
        self.plan = plan
        plan.apply(self.backbone)

    def sample(
        self, z: Tensor, c: Tensor, g: Tensor | None, noise: Tensor, preview: Preview | None = None
    ) -> list[Sampled]:
        """Return what each point makes of a batch of images.

        Args:
            z: (B, C, h, w) decoded scaled latents.
            c: (B, T, D) decoded text condition.
            g: (B, L, tokens, width) decoded features; may be None when nothing is guided.
            noise: (B, R, C, h, w) of ``noise_for``.
            preview: called after every step with its number, from 1, and the first point's latents (S, C, h, w).

        Raises:
            UserError: features of another backbone.
        """
        self._check_shapes(z, c, g)
        g_SLTD = spread(g, noise.shape[1]) if g is not None and self.tower is not None else None

        def guided(tracks: Tracks, step: int, c_STD: Tensor) -> Tracks:
            assert g_SLTD is not None
            return self._guided_step(tracks, step, c_STD, g_SLTD)

        return self._walked(z, c, noise, guided, preview)

    def _walked(
        self, z: Tensor, c: Tensor, noise: Tensor, guided: GuidedStep, preview: Preview | None
    ) -> list[Sampled]:
        """Take the tracks of all points through all steps; `guided` takes those that are steered one step further."""
        n_repeats, self._done = noise.shape[1], 0.0
        walk = Trajectories(self.points, add_noise(spread(z, n_repeats), noise.flatten(0, 1), self.schedule.start))
        c_STD = spread(c, n_repeats)
        for step in range(len(self.schedule)):
            walk.branch(step)
            if walk.guided:
                walk.guided = guided(walk.guided, step, c_STD)
            # Each track by itself: in the parts it has alone, so that the images are those it gives alone.
            walk.plain = {point: self._plain_step(track, step, c_STD) for point, track in walk.plain.items()}
            if preview is not None:
                first = self.points[0].key
                preview(step + 1, (walk.plain.get(first) or walk.guided[first.kappa]).z)
        walk.branch(len(self.schedule))
        return [self._shown(walk.end(point), n_repeats) for point in self.points]

    def _in_parts(self, kind: str, function: Callable[..., Any], *columns: Tensor) -> Any:
        """Apply a function to as many samples at once as the plan says, and tell who watches how far the batch is."""

        def done(n: int) -> None:
            self._done += n * COST[kind]
            if self.watch is not None:
                self.watch(self._done / (self._all * len(columns[0])))

        return in_parts(function, getattr(self.plan, kind), *columns, lanes=self.plan.lanes, done=done)

    @cached_property
    def _all(self) -> float:
        """What sampling all points costs a sample, by ``COST``."""
        tracks = [tracks_at(self.points, step) for step in range(len(self.schedule))]
        n_guided, n_plain = (sum(column) for column in zip(*tracks, strict=True))
        return n_guided * (COST["guided"] + COST["plain"]) + n_plain * COST["plain"] + len(self.points) * COST["decode"]

    def _shown(self, track: Track, n_repeats: int) -> Sampled:
        with torch.inference_mode():
            images = self._in_parts("decode", lambda z: self.backbone.decode(z).float().clamp(0, 1), track.z)
        # A clone is an ordinary tensor again.
        return Sampled(images.clone().unflatten(0, (-1, n_repeats)), track.stopped.clone().view(-1, n_repeats))

    def _plain_step(self, track: Track, step: int, c_STD: Tensor, added: Added = lambda rows: ()) -> Track:
        """Take a track that no gradient guides one step further."""
        t, abar, after = self._at(step)
        rows = torch.arange(len(c_STD), device=c_STD.device)
        with torch.inference_mode():
            eps = self._in_parts(
                "plain", lambda z, c, at: self.denoise(z, t, c, abar, added=added(at)), track.z, c_STD, rows
            )
            return track.moved(ddim_step(track.z, eps, abar, after), step)

    def _guided_step(self, tracks: Tracks, step: int, c_STD: Tensor, g_SLTD: Tensor) -> Tracks:
        """Take guided tracks, by kappa, one step further; in the first step all still hold the same latents."""
        _, abar, after = self._at(step)
        moved: Tracks = {}
        known: tuple[Tensor, Tensor] | None = None
        for kappa, track in tracks.items():
            assert isinstance(kappa, float | int)
            if known is None or step > 0:
                known = self._steered(track.z, step, c_STD, g_SLTD)
            eps, gradient = known
            now = kappa_at(kappa, self.guidance.schedule, step, len(self.schedule))
            eps = guided_noise(eps, gradient, abar, now, normalise=self.guidance.normalise)
            moved[kappa] = track.moved(ddim_step(track.z, eps, abar, after), step)
        return moved

    def _steered(self, z: Tensor, step: int, c_STD: Tensor, g_SLTD: Tensor) -> tuple[Tensor, Tensor]:
        """Noise prediction, without feature guidance, and the gradient of the loss, of all samples."""
        t, abar, _ = self._at(step)
        gradient, eps_cond = self._in_parts(
            "guided", lambda z, c, g: self._gradient(z, c, g, t, abar), z, c_STD, g_SLTD
        )
        with torch.no_grad():
            eps = self._in_parts("plain", lambda z, c, e: self.denoise(z, t, c, abar, e), z, c_STD, eps_cond)
        return eps, gradient

    def _gradient(self, z: Tensor, c: Tensor, g: Tensor, t: int, alpha_bar: float) -> tuple[Tensor, Tensor]:
        """Gradient of the loss and the conditional noise prediction it went through, of some samples."""
        gradient, eps_cond, _ = self.guide(c, g, t).gradient(z, alpha_bar)
        return gradient, eps_cond

    def guide(self, c_STD: Tensor, g_SLTD: Tensor, t: int) -> FeatureGuidance:
        """Return the feature guidance of some samples at a timestep."""
        assert self.tower is not None
        return FeatureGuidance(
            denoise=lambda z: self.denoise.conditional(z, t, c_STD),
            decode=self.decode,
            features=self.tower,
            wanted=g_SLTD,
            weights=layer_weights(g_SLTD, self.guidance.layer_weights),
            through_unet=self.guidance.through_unet,
            arithmetic=self.arithmetic,
            loss_scale=LOSS_SCALE.get(self.backbone.dtype, 1.0),
        )

    def _at(self, step: int) -> tuple[int, float, float]:
        """Timestep of a step, alpha_bar there and after it."""
        schedule = self.schedule
        return schedule.timesteps[step], schedule.alpha_bar[step], schedule.alpha_bar_next[step]

    def _check_shapes(self, z: Tensor, c: Tensor, g: Tensor | None) -> None:
        wanted = {"z": (z, self.backbone.latent_shape), "c": (c, tuple(self.denoise.uncond_1TD.shape[1:]))}
        for name, (values, shape) in wanted.items():
            if tuple(values.shape[1:]) != shape:
                raise UserError(
                    f"decoded {name} has shape {tuple(values.shape[1:])} per image but the backbone takes {shape}. "
                    "Were the targets extracted with another backbone? Use one backbone.* for all verbs."
                )
        if self.tower is not None and (g is None or tuple(g.shape[1:]) != self.feature_shape):
            got = None if g is None else tuple(g.shape[1:])
            raise UserError(
                f"decoded g has shape {got} per image; guidance by target.layers of this image tower takes "
                f"{self.feature_shape}. Use one backbone.* and one target.layers for all verbs."
            )


def arrange(backbone: Backbone) -> None:
    """Lay the weights of convolutions out as the device likes them: colours last, but for the UNet on a CPU."""
    for network in (backbone.vae, *([backbone.unet] if backbone.device.type == "cuda" else [])):
        network.to(memory_format=torch.channels_last)


def spread(x: Tensor, n_repeats: int) -> Tensor:
    """Repeat every image's row for each of its repeats: (B, ...) to (B * R, ...), repeats of an image side by side."""
    return x.repeat_interleave(n_repeats, dim=0)
