"""Roughly how much memory and disk the largest steps take, from the shapes of data and backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from nd.backbone.image_tower import CONFIG_FILE
from nd.backbone.tower_clip import TOWER, is_backbone
from nd.backbone.vdvae.loading import shape_of
from nd.backbone.weights import local_folder
from nd.config import Config
from nd.doctor.extent import Extent
from nd.files import read_json
from nd.generate.plan import Plan, lanes_of
from nd.machine import pick_device
from nd.mappers.arrays import LARGE_BYTES
from nd.mappers.base import columns_at_once
from nd.mappers.normal_equations import equation_bytes
from nd.runs.identity import reads_targets

# Stable Diffusion v1.4, where its files are not on this disk.
SD14: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2},
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "num_hidden_layers": 12,
    },
}
FETCH = "Fetch it again."


class ModelFacts(TypedDict):
    """What is read of an open_clip model's sizes."""

    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]


class TowerFile(TypedDict):
    """What is read of open_clip_config.json."""

    model_cfg: ModelFacts


SD14_TOWER = {"width": 768, "patch_size": 32}

# Activations kept for the gradient of one guided sample, as multiples of one (first-level channels x pixels) tensor of
# the decoder and of the UNet, the latter for each layer of a block; attention maps are not kept (fused attention).
# Counted in float32 at 512 px on Stable Diffusion v1.4 (decoder 6.5 GB, UNet 2.3 GB without maps) and on the Scenes
# backbone (9.5 MB and 4.5 MB, where these factors give 12.6 MB and 9 MB). An upper bound.
DECODER_TENSORS, UNET_TENSORS = 48, 220
# Preparing NSD holds a session's betas in float32, their training rows once more, and their deviations in float64.
SESSION_COPIES = 4
# Fitting in closed form holds the responses as they are read and once more scaled; ridge then decomposes the smaller
# Gram matrix, of which it holds three in float64 (`nd.mappers.ridge_solver.decompose`), and beside them a block of
# targets in four states. At five sizes of 600 to 4,000 images a fit took .9 to 1.3 times what this gives.
RESPONSE_COPIES, GRAM_COPIES, BLOCK_COPIES = 2, 3, 4

# Targets of the same shape whatever the configuration: CLIP ViT-L/14's tokens, the 64 px edge map, the 8 x 8 mosaic.
FIXED_SHAPES: dict[str, tuple[int, ...]] = {"edge": (64, 64), "colour": (8, 8, 3)}
CLIP_SHAPES: dict[str, tuple[int, ...]] = {"clip_vision": (257, 768), "clip_text": (77, 768), "clip_image": (768,)}


@dataclass(frozen=True)
class Memory:
    """What the largest steps hold, in bytes.

    ``preparing``: a session of NSD (0: other data, read in small blocks); ``mapping``: the largest mapper in closed
    form while it is fitted (0: it is trained, see ``nd.doctor.training``); ``sample``: activations of one guided
    sample; ``in_flight``: how many of them go through the networks at once where memory allows.
    """

    preparing: float
    mapping: float
    sample: float
    in_flight: int


def memory_estimate(cfg: Config, data: Extent) -> Memory:
    """Estimate the memory of the largest steps."""
    vae, unet = (module_config(cfg, part) for part in ("vae", "unet"))
    size, factor = cfg.backbone.image_size, 2 ** (len(vae["block_out_channels"]) - 1)
    element = 4 if cfg.backbone.dtype == "float32" else 2
    sample = DECODER_TENSORS * vae["block_out_channels"][0] * size**2
    sample += UNET_TENSORS * unet["layers_per_block"] * unet["block_out_channels"][0] * (size // factor) ** 2
    guided = cfg.method.generator in ("guided_diffusion", "minddiffuser")
    preparing = 4.0 * SESSION_COPIES * 750 * data.voxels if cfg.data.source == "nsd" else 0.0
    return Memory(preparing, _mapper_bytes(cfg, data), float(element * sample * guided), _in_flight(cfg) * guided)


def _in_flight(cfg: Config) -> int:
    """Guided samples that go through the networks at once where there is memory for them."""
    limit = cfg.debug.limit_images * cfg.method.n_repeats
    job = [min(limit, cfg.trainer.batch_size) or cfg.trainer.batch_size]
    plan = Plan.for_speed(job)
    knows_lanes = cfg.method.generator == "guided_diffusion" and pick_device(cfg.trainer.accelerator).type == "cpu"
    return plan.guided * (lanes_of(plan, job, guides=True) if knows_lanes and not cfg.trainer.compile else 1)


def _mapper_bytes(cfg: Config, data: Extent) -> float:
    """What fitting the largest target holds; coefficients that are too large go through a file."""
    most = 0.0
    for name, numbers in target_numbers(cfg).items():
        own = cfg.with_target(name)
        fitting = {"ridge": _ridge_bytes, "fastl2lir": _fastl2lir_bytes}.get(own.mapper.name)
        if fitting is not None and numbers and data.voxels:
            n_samples = _n_samples(own, data)
            copies = 4.0 * RESPONSE_COPIES * n_samples * data.voxels
            most = max(most, copies + fitting(own, n_samples, data.voxels, numbers))
    return most


def _n_samples(cfg: Config, data: Extent) -> int:
    """Rows that a target's mapper is fitted on; of single trials all of the subject's, those held out among them."""
    if getattr(cfg.mapper, "trials", "mean") == "single" and data.trials:
        return data.trials
    return data.fitted or data.voxels


def _ridge_bytes(cfg: Config, n_samples: int, n_voxels: int, size: int) -> float:
    """Gram matrices, both factors (N, R) and (V, R), weights (V, P) or coefficients (R, P), and blocks of columns."""
    n_components = min(n_voxels, n_samples)
    whole = n_voxels * size <= n_components * (n_voxels + size)
    solved = 4.0 * (n_voxels if whole else n_components) * size
    factors = 4.0 * n_components * (n_samples + n_voxels)
    blocks = 4.0 * BLOCK_COPIES * n_samples * min(size, columns_at_once(n_samples))
    return 8.0 * GRAM_COPIES * n_components**2 + factors + blocks + (solved if solved <= LARGE_BYTES else 0.0)


def _fastl2lir_bytes(cfg: Config, n_samples: int, n_voxels: int, size: int) -> float:
    """The equations, and weights (P, V) or indices and coefficients (P, F), whichever are fewer."""
    n_feat = min(cfg.mapper.n_feat, n_voxels)
    arrays = [4.0 * size * n_feat] * 2 if 2 * n_feat < n_voxels else [4.0 * size * n_voxels]
    equations = equation_bytes(n_samples, n_voxels, n_feat, pick_device(cfg.trainer.accelerator).type)
    return equations + sum(n_bytes for n_bytes in arrays if n_bytes <= LARGE_BYTES)


def store_bytes(cfg: Config, data: Extent) -> dict[str, float]:
    """Size of the store of every target of the method: images times numbers times bytes of one."""
    element = {name: 2 if cfg.decoding(name).target.dtype == "float16" else 4 for name in cfg.method.targets}
    return {name: float(data.images * numbers * element[name]) for name, numbers in target_numbers(cfg).items()}


def target_numbers(cfg: Config) -> dict[str, int]:
    """Numbers per image of every target that the method reads."""
    shapes = target_shapes(cfg)
    return (
        {name: math.prod(shapes[name]) for name in cfg.method.targets if name in shapes} if reads_targets(cfg) else {}
    )


def target_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every target there is, read by the method or not."""
    vae, text = (module_config(cfg, part) for part in ("vae", "text_encoder"))
    vdvae = cfg.decoding("vdvae").target
    side, channels = cfg.backbone.image_size // 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]
    return {
        "z": (channels, side, side),
        "c": (cfg.decoding("c").target.tokens or text["max_position_embeddings"], text["hidden_size"]),
        "g": _tower_shape(cfg),
        "pixels": (cfg.data.image_size, cfg.data.image_size, 3),
        "z40": (channels, 5 * side // 8, 5 * side // 8),
        "vdvae": (shape_of(vdvae.vdvae).n_numbers(vdvae.vdvae_layers),),
        **FIXED_SHAPES,
        **_clip_shapes(cfg.decoding("clip_vision").target.clip),
    }


def _clip_shapes(given: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what a CLIP model says: of a backbone's tower that is read as one, else of ViT-L/14."""
    folder = local_folder(given)
    if folder is None or not is_backbone(folder):
        return CLIP_SHAPES
    model = read_json(folder / TOWER / CONFIG_FILE, TowerFile, FETCH)["model_cfg"]
    vision, width = model["vision_cfg"], model["embed_dim"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    return {
        "clip_vision": (tokens, width),
        "clip_text": (model["text_cfg"]["context_length"], width),
        "clip_image": (width,),
    }


def module_config(cfg: Config, part: str) -> dict[str, Any]:
    """Return the config.json of a part of the backbone; Stable Diffusion v1.4's where it is not on this disk."""
    folder = local_folder(cfg.backbone.weights)
    file = folder / part / "config.json" if folder else None
    return SD14[part] | (read_json(file, again=FETCH) if file and file.is_file() else {})


def tower_config(cfg: Config) -> dict[str, Any]:
    """Return width and patch size of the image tower; ViT-B/32's where it is not on this disk."""
    folder = local_folder(cfg.backbone.image_tower)
    file = folder / "open_clip_config.json" if folder else None
    vision: dict[str, Any] = dict(SD14_TOWER)
    if file and file.is_file():
        vision |= read_json(file, TowerFile, FETCH)["model_cfg"]["vision_cfg"]
    return vision


def _tower_shape(cfg: Config) -> tuple[int, int, int]:
    vision = tower_config(cfg)
    tokens = (cfg.backbone.tower_size // vision["patch_size"]) ** 2 + 1
    return len(cfg.decoding("g").target.layers), tokens, vision["width"]
