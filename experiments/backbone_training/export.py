"""Write a trained backbone as a diffusers folder with half-precision safetensors, and an open_clip folder inside it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer

from backbone_training.clip import PIXEL_MEAN, PIXEL_STD, ClipRecipe, clip_config, text_encoder
from backbone_training.unet import sd_scheduler

M = TypeVar("M", bound=nn.Module)

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export_backbone(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    clip: CLIP,
    recipe: ClipRecipe,
    tokenizer_folder: Path,
    image_size: int,
) -> None:
    """Write everything into a new folder beside `folder`, then put it in its place: readers never see a half.

    Other files already in `folder` (quality.json, ...) are kept.
    """
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(folder, new) if folder.exists() else new.mkdir(parents=True)
    half(vae).save_pretrained(new / "vae")
    half(unet).save_pretrained(new / "unet")
    half(text_encoder(clip, recipe, tokenizer)).save_pretrained(new / "text_encoder")
    sd_scheduler().save_pretrained(new / "scheduler")
    shutil.copytree(tokenizer_folder, new / "tokenizer", dirs_exist_ok=True)
    write_image_tower(new / "image_tower", clip, recipe, image_size, tokenizer)
    _write_json(new / "model_index.json", MODEL_INDEX)
    for file in new.glob("*/config.json"):
        forget_origin(file)
    for file in new.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_image_tower(folder: Path, clip: CLIP, recipe: ClipRecipe, image_size: int, tokenizer: CLIPTokenizer) -> None:
    """A folder that open_clip opens as `local-dir:<folder>`."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": clip_config(recipe, image_size, tokenizer), "preprocess_cfg": pixels}
    _write_json(folder / "open_clip_config.json", config)
    weights = {name: value.contiguous().clone() for name, value in half(clip).state_dict().items()}
    save_file(weights, str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})


def forget_origin(config: Path) -> None:
    """Take out of a model's config.json where its weights were read from: a path of the machine that made it."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.pop("_name_or_path", None) is not None:
        _write_json(config, values)


def half(model: M) -> M:
    """A half-precision copy, on contiguous memory."""
    with torch.no_grad():
        return copy.deepcopy(model).half().eval().to(memory_format=torch.contiguous_format)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
