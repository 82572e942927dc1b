"""vdvae: latents of a very deep VAE, coarse to fine, from which Brain-Diffuser decodes its first guess of an image.

Shapes: B batch, P latent numbers of all wanted layers together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.backbone.vdvae.halves import Noise
from nd.backbone.vdvae.images import to_pixels
from nd.backbone.vdvae.loading import shape_of, vdvae_hash, vdvae_of
from nd.backbone.vdvae.model import PIXEL_MEAN, PIXEL_STD, Vdvae
from nd.backbone.vdvae.shape import VdvaeShape
from nd.targets.base import Items, Needs, library
from nd.targets.components import VdvaeTarget
from nd.targets.noise import keyed_normal

# Of the samples' noise. Larger than any seed one would think of, so that the noise is never that of a sampler's start,
# which is keyed in the same way.
NOISE_SEED = 0x7664766165
CHUNK = 16  # images in a forward pass: 70 MB each, and no faster with more

RULES = {
    "mode": "posterior mean of each layer given the means before it",
    "sample": "posterior sample, noise a function of image id and layer",
}


class VdvaeLatents:
    """Latents of the first layers, each flattened in C order, one after another.

    The released Brain-Diffuser takes posterior samples without a seed (posterior=sample, but ours are the same at every
    extraction); the mean carries no noise that no voxel can explain.
    """

    name = "vdvae"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone, target: VdvaeTarget, network: VdvaeShape | None = None) -> None:
        """backbone: gives the device and keeps the network; target: its vdvae, vdvae_layers, posterior, precision."""
        self.backbone, self.target, self.network = backbone, target, network or shape_of(target.vdvae)

    @property
    def model(self) -> Vdvae:
        """The network with its weights, loaded when first asked for."""
        return vdvae_of(self.backbone, self.target.vdvae, self.target.precision, self.network)

    @property
    def shape(self) -> tuple[int, ...]:
        """(P,): 91,168 for the 31 layers of Brain-Diffuser."""
        return (self.network.n_numbers(self.target.vdvae_layers),)

    def fingerprint(self) -> dict[str, Any]:
        """Weights, layers, rule and how images are made; `target.precision` is added to every target's."""
        noise = {"noise_seed": NOISE_SEED} if self.target.posterior == "sample" else {}
        return noise | {
            "target": "vdvae",
            "rule": RULES[self.target.posterior],
            "layers": self.target.vdvae_layers,
            "image_size": self.network.image_size,
            "resize": "PIL bilinear, antialiased, in bytes",
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "weights": vdvae_hash(self.target.vdvae),
            "library": library("torch"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Latents (B, P) float32."""
        found = np.empty((len(items.ids), *self.shape), np.float32)
        with torch.inference_mode():
            for start in range(0, len(found), CHUNK):
                part = slice(start, start + CHUNK)
                found[part] = self._latents(items.images[part], items.ids[part])
        return found

    def _latents(self, images: NDArray[np.uint8], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        pixels = to_pixels(images, self.network.image_size).to(self.backbone.device)
        noise = _noise_of(ids) if self.target.posterior == "sample" else None
        latents = self.model.posterior(self.model.encode(pixels), self.target.vdvae_layers, noise)
        joined: NDArray[np.float32] = self.model.join(latents).float().cpu().numpy()
        return joined


def _noise_of(ids: NDArray[np.int32]) -> Noise:
    """Noise by layer for images; belongs to the image, whatever the batch."""
    return lambda layer, shape: torch.from_numpy(keyed_normal(NOISE_SEED, [int(i) for i in ids], layer, shape[1:]))
