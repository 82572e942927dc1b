"""Roughly how much memory and disk the largest steps take, from the shapes of data and backbone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nd.backbone.vdvae.shape import IMAGENET64
from nd.needs.extent import Extent
from nd.needs.weights import local_folder
from nd.results.identity import reads_targets
from nd.schema import Config

# Stable Diffusion v1.4, where its files are not on this disk.
SD14: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4},
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "text_encoder": {"hidden_size": 768, "max_position_embeddings": 77},
}
SD14_TOWER = {"width": 768, "patch_size": 32}

# Activations kept for the gradient of one guided sample, as multiples of one (first-level channels x pixels) tensor of
# the decoder and of the UNet, the latter for each layer of a block; attention maps are not kept (fused attention).
# Counted in float32 at 512 px on Stable Diffusion v1.4 (decoder 6.5 GB, UNet 2.3 GB without maps) and on the Scenes
# backbone (9.5 MB and 4.5 MB, where these factors give 12.6 MB and 9 MB). An upper bound.
DECODER_TENSORS, UNET_TENSORS = 48, 220
# Preparing NSD holds a session's betas in float32, their training rows once more, and their deviations in float64.
SESSION_COPIES = 4


# Targets of the same size whatever the configuration: CLIP ViT-L/14's tokens, the 64 px edge map, the 8 x 8 mosaic.
FIXED_NUMBERS = {
    "clip_vision": 257 * 768,
    "clip_text": 77 * 768,
    "clip_image": 768,
    "edge": 64 * 64,
    "colour": 8 * 8 * 3,
}


@dataclass(frozen=True)
class Memory:
    """What the largest steps hold, in bytes.

    ``preparing``: a session of NSD (0: other data, read in small blocks); ``mapping``: the largest ridge mapper
    (float32) while it is fitted; ``sample``: activations of one guided sample; ``in_flight``: how many of them.
    """

    preparing: float
    mapping: float
    sample: float
    in_flight: int


def memory_estimate(cfg: Config, data: Extent) -> Memory:
    """Estimate the memory of the largest steps; about ``trainer.batch_size`` samples are in flight at a time."""
    vae, unet = (_module_config(cfg, part) for part in ("vae", "unet"))
    size, factor = cfg.backbone.image_size, 2 ** (len(vae["block_out_channels"]) - 1)
    element = 4 if cfg.backbone.dtype == "float32" else 2
    sample = DECODER_TENSORS * vae["block_out_channels"][0] * size**2
    sample += UNET_TENSORS * unet["layers_per_block"] * unet["block_out_channels"][0] * (size // factor) ** 2
    guided = cfg.method.generator == "guided_diffusion"
    repeats = cfg.method.repeats
    in_flight = max(1, cfg.trainer.batch_size // repeats) * repeats
    preparing = 4.0 * SESSION_COPIES * 750 * data.voxels if cfg.data.source == "nsd" else 0.0
    return Memory(preparing, _mapper_bytes(cfg, data), float(element * sample * guided), in_flight if guided else 0)


def _mapper_bytes(cfg: Config, data: Extent) -> float:
    """Coefficients (R, P) of the components for the largest target, and weights (V, P) or directions (V, R)."""
    largest = max(target_numbers(cfg).values(), default=0)
    n_components = min(data.voxels, data.fitted or data.voxels)
    weights, factors = data.voxels * largest, n_components * (data.voxels + largest)
    # The smaller of the two is kept; making weights takes the coefficients beside them.
    return 4.0 * (weights + n_components * largest if weights <= factors else factors)


def store_bytes(cfg: Config, data: Extent) -> dict[str, float]:
    """Size of the store of every target of the method: images times numbers times bytes of one."""
    element = 2 if cfg.target.dtype == "float16" else 4
    return {name: float(data.images * numbers * element) for name, numbers in target_numbers(cfg).items()}


def target_numbers(cfg: Config) -> dict[str, int]:
    """Numbers per image of every target that the method reads."""
    vae, text = (_module_config(cfg, part) for part in ("vae", "text_encoder"))
    side = cfg.backbone.image_size // 2 ** (len(vae["block_out_channels"]) - 1)
    known = {
        "z": vae["latent_channels"] * side**2,
        "c": text["hidden_size"] * (cfg.target.tokens or text["max_position_embeddings"]),
        "g": _tower_numbers(cfg),
        "pixels": 3 * cfg.data.image_size**2,
        "z40": vae["latent_channels"] * (5 * side // 8) ** 2,
        "vdvae": IMAGENET64.n_numbers(cfg.target.vdvae_layers),
        **FIXED_NUMBERS,
    }
    return {name: known[name] for name in cfg.method.targets if name in known} if reads_targets(cfg) else {}


def _module_config(cfg: Config, part: str) -> dict[str, Any]:
    folder = local_folder(cfg.backbone.weights)
    file = folder / part / "config.json" if folder else None
    return SD14[part] | (json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {})


def _tower_numbers(cfg: Config) -> int:
    folder = local_folder(cfg.backbone.image_tower)
    file = folder / "open_clip_config.json" if folder else None
    vision: dict[str, Any] = dict(SD14_TOWER)
    if file and file.is_file():
        vision |= json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
    tokens = (cfg.backbone.tower_size // vision["patch_size"]) ** 2 + 1
    return len(cfg.target.layers) * tokens * vision["width"]
