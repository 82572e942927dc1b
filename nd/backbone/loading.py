"""The frozen backbone: VAE, UNet, scheduler, text encoder and image tower behind one object, loaded when first used.

The same code opens the small backbones shipped in the package and Stable Diffusion from the hub.
Shapes: B batch, 3 colours, H W rows and columns, C h w latent channels, rows and columns, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.image_tower import load_clip, tower_folder, tower_hash
from nd.backbone.reading import freeze, read_module, reading
from nd.backbone.tower import preprocess, resize
from nd.backbone.weights import (
    PARTS,
    Source,
    find_source,
    hash_folder,
    module_folder,
    revision_of,
    weight_variant,
)
from nd.config import BackboneConfig
from nd.errors import UserError

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

TEXT_ENDS = 2  # tokens that every caption has: its beginning and its end

# Pixels that the VAE encodes at once, so that memory does not grow with the batch: a 512 px image takes 0.13 GB per
# float32 activation. More than 2^16 are a third slower on CPUs: larger tensors go back to the system each time.
CPU_PIXELS, GPU_PIXELS = 1 << 16, 1 << 21

TINY_EXAMPLE = "madebyollin/taesd, 5 MB, MIT licence"  # for Stable Diffusion 1.x

NO_ACCELERATE = {"low_cpu_mem_usage": False}  # diffusers' other way of loading needs a further package


def load_backbone(config: BackboneConfig, device: str | torch.device = "cpu", *, dtype: str | None = None) -> Backbone:
    """Find a backbone and return it; its modules are read when first used.

    Args:
        config: the backbone group.
        device: where the modules go.
        dtype: overrides `config.dtype`; features are always extracted in float32, whatever sampling uses.

    Raises:
        UserError: the weights are absent; says what is needed, from where and how large.
    """
    backbone = Backbone(config, device, dtype=dtype)
    _ = backbone.source
    return backbone


class Backbone:
    """Frozen modules in eval mode; `requires_grad` is off everywhere, gradients still flow through to the inputs.

    Nothing is looked for before it is used, so code that needs no weights runs without any.
    """

    def __init__(self, config: BackboneConfig, device: str | torch.device = "cpu", *, dtype: str | None = None) -> None:
        """Arguments as for `load_backbone`, which also makes sure that the weights are there."""
        self.config, self.device, self.dtype = config, torch.device(device), DTYPES[dtype or config.dtype]
        self._shared: dict[Hashable, Any] = {}

    @cached_property
    def source(self) -> Source:
        """Where the diffusers folder lies."""
        return find_source(self.config.weights)

    # ---- modules -------------------------------------------------------------------------------------------------

    @cached_property
    def vae(self) -> Any:
        """A diffusers AutoencoderKL."""
        from diffusers import AutoencoderKL

        return self._weights("vae", AutoencoderKL, torch_dtype=self.dtype, **NO_ACCELERATE)

    @cached_property
    def tiny_vae(self) -> Any:
        """A diffusers AutoencoderTiny that reads the VAE's latents."""
        from diffusers import AutoencoderTiny

        folder = module_folder(self.config.tiny_vae, "backbone.tiny_vae", TINY_EXAMPLE)
        options: dict[str, Any] = {"torch_dtype": self.dtype, **NO_ACCELERATE}
        return read_module(AutoencoderTiny, "the tiny autoencoder", folder, self.device, **options)

    @cached_property
    def unet(self) -> Any:
        """A diffusers UNet2DConditionModel."""
        from diffusers import UNet2DConditionModel

        return self._weights("unet", UNet2DConditionModel, torch_dtype=self.dtype, **NO_ACCELERATE)

    @cached_property
    def scheduler(self) -> Any:
        """A DDIM scheduler with the folder's noise schedule, whichever scheduler the folder names (SD v1.4: PNDM)."""
        from diffusers import DDIMScheduler

        folder = self.source.part("scheduler")
        with reading("the backbone's scheduler", folder):
            return DDIMScheduler.from_pretrained(folder)

    @cached_property
    def text_encoder(self) -> Any:
        """A transformers CLIPTextModel."""
        from transformers import CLIPTextModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        return self._weights("text_encoder", CLIPTextModel, dtype=self.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        """A transformers CLIPTokenizer."""
        from transformers import CLIPTokenizer

        folder = self.source.part("tokenizer")
        with reading("the backbone's tokenizer", folder):
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    @cached_property
    @torch.inference_mode(False)  # see read_module
    def clip(self) -> Any:
        """The whole open_clip model; only its image half is needed outside evaluation of the backbone itself."""
        return freeze(load_clip(self.config.image_tower).to(self.dtype), self.device)

    @property
    def tower(self) -> Any:
        """The image half of `clip`."""
        return self.clip.visual

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latent of one image."""
        config = self.vae.config
        side = self.config.image_size // 2 ** (len(config["block_out_channels"]) - 1)
        return int(config["latent_channels"]), side, side

    @property
    def text_shape(self) -> tuple[int, int]:
        """(T, D) of an encoded caption."""
        config = self.text_encoder.config
        return int(config.max_position_embeddings), int(config.hidden_size)

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by to have about unit variance (SD v1: 0.18215, one over their deviation)."""
        return float(self.vae.config["scaling_factor"])

    def to_float(self, images: NDArray[np.uint8] | Tensor, size: int = 0) -> Tensor:
        """Images as (B, 3, S, S) float32 in [0, 1] on the backbone's device, resized with a bilinear low-pass.

        images: uint8 (B, H, W, 3), or float (B, 3, H, W) in [0, 1]; size: S, by default the backbone's image size.
        """
        if isinstance(images, np.ndarray):
            # Bytes travel to the device and are turned there.
            moved = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)
            images = moved.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        # float32 up to the network's door: half precision would coarsen the pixels at every step of the way.
        moved = images.to(self.device, torch.float32)
        return resize(moved, size or self.config.image_size).clamp(0, 1)

    def posterior(self, images_B3HW: Tensor) -> Any:
        """The VAE's distribution over latents, before `scaling_factor`, of images in [0, 1] of any size it takes."""
        inputs, on_cpu = (images_B3HW * 2 - 1).to(self.dtype), self.device.type == "cpu"
        if on_cpu:  # a tenth to a third faster; the convolutions hand the layout on
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        at_once = max(1, (CPU_PIXELS if on_cpu else GPU_PIXELS) // (inputs.shape[-2] * inputs.shape[-1]))
        found = [self.vae.encode(part).latent_dist for part in inputs.split(at_once)]
        return type(found[0])(torch.cat([part.parameters for part in found]))

    def encode_images(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Scaled latents (B, C, h, w): the mode of the VAE's posterior times `scaling_factor`.

        The mode, not a sample: a regression target should not carry noise that no voxel can explain.
        """
        return self.posterior(self.to_float(images)).mode() * self.scaling_factor

    def decode(self, latents_BChw: Tensor, *, clamp: bool = True) -> Tensor:
        """Return the images of scaled latents. Differentiable.

        Args:
            latents_BChw: scaled latents, as the UNet has them.
            clamp: False leaves values outside [0, 1] as they are, with their gradients.

        Returns:
            (B, 3, H, W) in [0, 1], in the backbone's dtype.
        """
        decoded = self.vae.decode(latents_BChw.to(self.dtype) / self.scaling_factor).sample
        images = (decoded + 1) / 2
        return images.clamp(0, 1) if clamp else images

    def text_length(self, tokens: int = 0) -> int:
        """T, the tokens to which captions are padded and cut: `tokens`, or the encoder's full length where it is 0.

        A length that the encoder does not have, or that leaves no room for words, is a `UserError`.
        """
        full, _ = self.text_shape
        if tokens and not TEXT_ENDS < tokens <= full:
            raise UserError(
                f"target.tokens={tokens}, but the text encoder of backbone.weights={self.config.weights} takes "
                f"{TEXT_ENDS + 1} to {full} tokens, those of beginning and end included. Set target.tokens to one of "
                f"these numbers, or to 0 for all {full}."
            )
        return tokens or full

    def encode_text(self, captions: list[str], length: int = 0) -> Tensor:
        """Last hidden states (B, T, D), after the final norm: what the UNet is conditioned on. Padded, truncated.

        length: T, by default the encoder's full length. Tokens attend to those before them alone, so that the rows up
            to a caption's end are the same at any length that holds it.
        """
        length = self.text_length(length)
        coded = self.tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return self.text_encoder(input_ids=coded["input_ids"].to(self.device)).last_hidden_state

    def uncond(self) -> Tensor:
        """The encoded empty caption (1, T, D)."""
        return self._uncond

    @cached_property
    def _uncond(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return self.encode_text([""])

    def tower_input(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] resized and normalised for the image tower, in the backbone's dtype. Differentiable."""
        config = self.config
        mean, std, method = config.tower_mean, config.tower_std, config.tower_filter
        inputs = preprocess(images_B3HW, config.tower_size, mean, std, method, antialias=config.tower_antialias)
        return inputs.to(self.dtype)

    # ---- identity ------------------------------------------------------------------------------------------------

    def hash_of(self, part: str) -> str:
        """12 hexadecimal digits of one part's files; parts are the diffusers folder's subfolders and 'tower'."""
        return tower_hash(self.config.image_tower) if part == "tower" else hash_folder(self.source.part(part))

    def origin_of(self, part: str) -> dict[str, str]:
        """Where one part comes from: what was given, and for files of the hub their revision."""
        given = self.config.image_tower if part == "tower" else self.config.weights
        folder = tower_folder(given) if part == "tower" else self.source.part(part)
        return {"given": given, "revision": revision_of(folder), "hash": self.hash_of(part)}

    @property
    def weights_hash(self) -> dict[str, str]:
        """Hash of every part; reads all files once per process."""
        return {part: self.hash_of(part) for part in (*PARTS, "tower")}

    # ---- help ----------------------------------------------------------------------------------------------------

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several users of this backbone have in common, made for the first who asks and kept as long as it.

        Targets share further networks in this way, and the forward passes that `nd.targets.base.Items.once` runs.

        Args:
            key: names it, with every setting it depends on.
            make: makes it.
        """
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    def _weights(self, part: str, kind: Any, **options: Any) -> Any:
        folder = self.source.part(part)
        options |= {"variant": weight_variant(folder, part)}
        return read_module(kind, f"the backbone's {part}", folder, self.device, **options)
