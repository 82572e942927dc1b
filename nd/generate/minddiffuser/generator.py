"""MindDiffuser's generator: decoded z, c and g to images, R per image.

Where ``trainer.previews=<folder>`` asks for it, the first batch of a run is recorded there, which `nd report` shows
(Fig. 6 of the paper): image-<id>-step-<iteration>.png of its first image every 10 iterations, repeats side by side, and
losses.csv of all its images with the columns image_id, repeat, iteration (from 0) and loss, no row where a sample had
stopped.

B images, R repeats, S = B * R samples, C h w latent.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nd.backbone.loading import load_backbone
from nd.config import Config
from nd.files import write_text
from nd.generate.base import Reconstructions, not_finite, to_uint8
from nd.generate.guided_diffusion import Previews, previews_of
from nd.generate.minddiffuser.optimisation import Optimised, optimise
from nd.generate.minddiffuser.sampler import ImageToImage, structure_weights
from nd.generate.plan import Plan, in_parts, plan_for
from nd.generate.sampler import spread
from nd.targets.noise import keyed_normal

log = logging.getLogger(__name__)

PREVIEW_EVERY = 10  # iterations, as released (Image reconstruction/Reconstruction.py:369-389)
# Uses of random numbers beside a repeat's first noise: numbers of repeats stay below ITERATION, of iterations below the
# quotient of the two.
ITERATION, START = 1 << 20, 1 << 40


class MindDiffuser:
    """Both stages with the noise that belongs to each image, repeat and iteration."""

    def __init__(self, sampler: ImageToImage, seed: int, repeats: int, previews: Previews | None = None) -> None:
        """Take a sampler.

        Args:
            sampler: stage 1 and the gradients of stage 2.
            seed: of all noise.
            repeats: R.
            previews: of the first batch: images and losses of its iterations.
        """
        self.sampler, self.seed, self.repeats, self.previews = sampler, seed, repeats, previews
        self.watch: Callable[[float], object] | None = None

    def plan_for(self, batches: Sequence[int]) -> Plan:
        """Return the fastest plan for batches of so many images. Raises UserError where memory is too small."""
        memory_gb = self.sampler.cfg.trainer.memory_gb
        return plan_for(self.sampler, memory_gb, [n * self.repeats for n in batches])

    def use(self, plan: Plan) -> None:
        """Follow a plan from now on."""
        self.sampler.use(plan)

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of the one run.

        Args:
            image_ids: B stimulus numbers.
            features: c (B, T, D), and as the settings ask for z (B, C, h, w) and g (B, L, T, D).
        """
        method, g = self.sampler.method, features.get("g")
        c = spread(features["c"], self.repeats)
        z = self._drawn(image_ids, START, c) if method.start == "random" else spread(features["z"], self.repeats)
        self.sampler.check_shapes(z, c, g)
        noise = self._drawn(image_ids, 0, c)
        if g is not None and method.moved:
            found = self._optimised(image_ids, z, c, spread(g, self.repeats), noise)
            z, c = found.z, found.c
            if method.fresh_noise:
                noise = self._drawn(image_ids, method.iterations * ITERATION, c)
        images = self.sampler.images(z, c, noise).unflatten(0, (-1, self.repeats))
        self.previews = None  # of the first batch alone
        return [Reconstructions(to_uint8(images), not_finite(image_ids, images))]

    def _drawn(self, image_ids: Sequence[int], use: int, like: Tensor) -> Tensor:
        """Standard normal latents (S, C, h, w) of every image and repeat, for one use of them."""
        shape = self.sampler.backbone.latent_shape
        drawn = [keyed_normal(self.seed, image_ids, repeat + use, shape) for repeat in range(self.repeats)]
        return torch.from_numpy(np.stack(drawn, axis=1)).flatten(0, 1).to(like)

    def _optimised(self, image_ids: Sequence[int], z: Tensor, c: Tensor, g: Tensor, noise: Tensor) -> Optimised:
        method, plan = self.sampler.method, self.sampler.plan
        weights = structure_weights(g, method)

        def gradient(rows: Tensor, z: Tensor, c: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = in_parts(
                self.sampler.gradient, plan.guided, z, c, noise, g[rows], weights[rows]
            )
            return found

        def noise_at(iteration: int) -> Tensor:
            return self._drawn(image_ids, iteration * ITERATION, c) if method.fresh_noise else noise

        def seen(iteration: int, rows: Tensor, latents: Tensor) -> None:
            if self.watch is not None:
                self.watch((iteration + 1) / (method.iterations + 1))
            first = int((rows < self.repeats).sum())
            if self.previews is not None and first and iteration % PREVIEW_EVERY == 0:
                self.previews.write(image_ids, iteration, latents[:first])

        found = optimise(method, gradient, z, c, noise_at, seen)
        self._tell(image_ids, found)
        return found

    def _tell(self, image_ids: Sequence[int], found: Optimised) -> None:
        """Say how far the losses fell and which images diverged; keep the curves beside the previews."""
        first, least = found.losses[0], found.losses.nan_to_num(torch.inf).amin(0)
        log.info(
            "stage 2: the distance from the decoded features fell in %d of %d images, to %.2f of what it was (median)",
            int((least < first).sum()), len(first), float((least / first).median()),
        )  # fmt: skip
        for sample in found.diverged.nonzero().flatten().tolist():
            log.warning(
                "image %d, repeat %d: stage 2 diverged at iteration %d of %d; its best iterate, number %d, is kept. "
                "Lower method.learning_rate.",
                image_ids[sample // self.repeats], sample % self.repeats, int(found.diverged[sample]),
                self.sampler.method.iterations, int(found.kept[sample]),
            )  # fmt: skip
        if self.previews is not None:
            write_text(self.previews.folder / "losses.csv", curves(image_ids, self.repeats, found.losses))


def curves(image_ids: Sequence[int], repeats: int, losses_IS: Tensor) -> str:
    """Return the losses as CSV: image_id, repeat, iteration from 0, loss; no row where a sample had stopped."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "repeat", "iteration", "loss"])
    for sample, column in enumerate(losses_IS.T.tolist()):
        named = [int(image_ids[sample // repeats]), sample % repeats]
        writer.writerows([*named, k, loss] for k, loss in enumerate(column) if loss == loss)
    return text.getvalue()


def build(cfgs: Sequence[Config], device: torch.device) -> MindDiffuser:
    """Load the backbone on a device and prepare both stages of the one run."""
    (cfg,) = cfgs
    backbone = load_backbone(cfg.backbone, device)
    return MindDiffuser(ImageToImage(backbone, cfg), cfg.seed, cfg.method.n_repeats, previews_of(cfg, backbone))
