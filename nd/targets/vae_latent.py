"""z and z40: the latent of the image, from which the sampler starts.

Shapes: B batch, C h w latent channels, rows and columns, S side of the VAE's images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.pillow import lanczos
from nd.backbone.tower import resize
from nd.errors import unknown
from nd.targets.base import Items, Needs, library
from nd.targets.noise import keyed_normal

# Of the samples' noise: the bytes "z latent". Larger than any seed one would think of, so that the noise is never that
# of a sampler's start, which is keyed in the same way.
NOISE_SEED = 0x7A206C6174656E74
NOISE_OF = {"z": 0, "z40": 1, "first guess": 2}  # each use of an image draws apart

VIA = 224  # side of the images in coco_images_224_float16.hdf5 of the MindEye2 release
SMALL = (5, 8)  # 320 of Stable Diffusion's 512 px

POSTERIORS = {"mode": "posterior mode", "sample": "posterior sample, noise a function of the image id"}
PICTURES = {
    "direct": "bilinear, antialiased",
    "lanczos": "Pillow's Lanczos, in bytes",
    "via224": "where larger to 224 px bilinear, antialiased; rounded to float16; then bilinear, antialiased",
}


class VaeLatent:
    """The VAE's posterior mode, or a sample of it, times the scaling factor, of the image at the backbone's size.

    Three ways lead there (`target.picture`). ``direct`` resizes once, antialiased. ``lanczos`` is the released
    extraction: HaoyyLi/NeuralDiffuser@9286cad:src/img2feat_sd_pipe.py, Pillow's Lanczos from 425 to
    512 px, posterior=sample there. ``via224`` is what the released mapper of z is trained on (src/train_z.py:571-572,
    posterior=mode): 224-px images in half precision, enlarged to 512 px. How those came to 224 px is not said; here
    bilinear and antialiased.
    """

    name = "z"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone, picture: str = "direct", posterior: str = "mode") -> None:
        """picture and posterior: `target.picture` and `target.posterior`. UserError: an unknown one."""
        _check(posterior=posterior)
        if picture not in PICTURES:
            raise unknown("target.picture", picture, PICTURES)
        self.backbone, self.picture, self.posterior = backbone, picture, posterior

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return self.backbone.latent_shape

    def fingerprint(self) -> dict[str, Any]:
        """Weights, image size, the way to it, and what is taken of the posterior."""
        rest = {"picture": PICTURES[self.picture], "image_size": self.backbone.config.image_size}
        return _fingerprint(self.name, self.backbone, self.posterior) | rest

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Latents (B, C, h, w) float32."""
        with torch.inference_mode():
            return latents(self.backbone, self._pictures(items.images), self.posterior, items.ids, self.name)

    def _pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]."""
        backbone, size = self.backbone, self.backbone.config.image_size
        ways: dict[str, Callable[[], Tensor]] = {
            "direct": lambda: backbone.to_float(images),
            "lanczos": lambda: backbone.to_float(lanczos(images, size)),
            "via224": lambda: resize(self._halves(images), size),
        }
        return ways[self.picture]()

    def _halves(self, images: NDArray[np.uint8]) -> Tensor:
        """Images of at most 224 px, their values rounded to half precision, in float32."""
        return self.backbone.to_float(images, min(VIA, max(images.shape[1:3]))).half().float()


class SmallLatent:
    """The latent of a smaller image, a target of Takagi and Nishimoto (CVPR 2023): (4, 40, 40) in Stable Diffusion.

    Pillow's Lanczos to 320 px, [-1, 1], posterior sample times scaling factor: yu-takagi/StableDiffusionReconstruction
    @e187d4b:codes/utils/img2feat_sd.py:35-42,107-127 (posterior=sample). 320 is 5/8 of 512; with other backbones the
    side is 5/8 of theirs, rounded to a multiple of the VAE's downsampling.
    """

    name = "z40"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone, posterior: str = "mode") -> None:
        """posterior: `target.posterior`. UserError: an unknown one."""
        _check(posterior=posterior)
        self.backbone, self.posterior = backbone, posterior

    @property
    def picture_size(self) -> int:
        """S."""
        return small_size(self.backbone.config.image_size, self._factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        side = self.picture_size // self._factor
        return self.backbone.latent_shape[0], side, side

    def fingerprint(self) -> dict[str, Any]:
        """Weights, the backbone's image size, and what is taken of the posterior."""
        size = f"{SMALL[0]}/{SMALL[1]} of image_size, to the nearest multiple of the VAE's downsampling"
        rest = {"picture": PICTURES["lanczos"], "size": size, "image_size": self.backbone.config.image_size}
        return _fingerprint(self.name, self.backbone, self.posterior) | rest

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Latents (B, C, h, w) float32."""
        with torch.inference_mode():
            images = self.backbone.to_float(lanczos(items.images, self.picture_size), self.picture_size)
            return latents(self.backbone, images, self.posterior, items.ids, self.name)

    @property
    def _factor(self) -> int:
        """How many pixels of a side one latent column stands for."""
        return int(2 ** (len(self.backbone.vae.config["block_out_channels"]) - 1))


def small_size(image_size: int, factor: int) -> int:
    """5/8 of the backbone's image size, to the nearest multiple of the VAE's downsampling (halves up, at least one)."""
    times, of = SMALL
    return max(1, (2 * times * image_size + of * factor) // (2 * of * factor)) * factor


def latents(
    backbone: Backbone, images_B3SS: Tensor, posterior: str, ids: NDArray[np.int32], name: str
) -> NDArray[np.float32]:
    """Scaled latents (B, C, h, w) of images in [0, 1].

    Args:
        backbone: whose VAE.
        images_B3SS: float images of a size that the VAE takes.
        posterior: 'mode', or 'sample' = mean + std * noise.
        ids: (B,) image ids, which with the target's name decide the noise.
        name: the target, or the first guess of an image from which a sampler starts.
    """
    found = backbone.posterior(images_B3SS)
    values_BChw = found.mode().float()
    if posterior == "sample":
        noise = keyed_normal(NOISE_SEED, [int(i) for i in ids], NOISE_OF[name], values_BChw.shape[1:])
        values_BChw = values_BChw + found.std.float() * torch.from_numpy(noise).to(values_BChw.device)
    return np.ascontiguousarray((values_BChw * backbone.scaling_factor).cpu().numpy())


def _fingerprint(name: str, backbone: Backbone, posterior: str) -> dict[str, Any]:
    noise = {"noise_seed": [NOISE_SEED, NOISE_OF[name]]} if posterior == "sample" else {}
    return noise | {
        "target": name,
        "rule": "latent * scaling factor",
        "posterior": POSTERIORS[posterior],
        "vae": backbone.hash_of("vae"),
        "library": library("diffusers"),
    }


def _check(*, posterior: str) -> None:
    if posterior not in POSTERIORS:
        raise unknown("target.posterior", posterior, POSTERIORS)
