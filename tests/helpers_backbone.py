"""A tiny untrained backbone in the layout of the real one: a diffusers folder and an open_clip folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nd.config import BackboneConfig

IMAGE_SIZE = 16
TEXT_LENGTH = 8
TEXT_WIDTH = 16


def tiny_backbone(folder: Path, seed: int = 0, image_size: int = IMAGE_SIZE) -> BackboneConfig:
    """Write random weights below `folder`; returns the configuration that loads them.

    16 px pictures, latents (4, 4, 4), captions (8, 16), tower of 12 blocks with 17 tokens of width 16. Of pictures of
    another size, a multiple of 8, the latents have a quarter of the side; the tower sees them at 16 px all the same.
    """
    torch.manual_seed(seed)
    _vae(image_size).save_pretrained(folder / "vae")
    _unet(image_size).save_pretrained(folder / "unet")
    _scheduler().save_pretrained(folder / "scheduler")
    tokenizer = letter_tokenizer(folder / "tokenizer")
    _text_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
    _image_tower(folder / "image_tower", len(tokenizer))
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    tower = str(folder / "image_tower")
    return BackboneConfig(
        name="tiny", weights=str(folder), image_tower=tower, image_size=image_size, tower_size=IMAGE_SIZE
    )


def _vae(image_size: int) -> AutoencoderKL:
    blocks = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    widths = (8, 8, 16)
    return AutoencoderKL(
        down_block_types=blocks[0], up_block_types=blocks[1], block_out_channels=widths, norm_num_groups=4,
        sample_size=image_size, scaling_factor=0.3,
    )  # fmt: skip


def _unet(image_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=image_size // 4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
    )  # fmt: skip


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def letter_tokenizer(folder: Path, length: int = TEXT_LENGTH) -> CLIPTokenizer:
    """Single characters, no merges: every ASCII letter alone and at the end of a word. Written to `folder`."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_encoder(n_tokens: int) -> CLIPTextModel:
    special = {"bos_token_id": n_tokens - 2, "eos_token_id": n_tokens - 1, "pad_token_id": n_tokens - 1}
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=n_tokens, max_position_embeddings=TEXT_LENGTH, **sizes, **special))


def _image_tower(folder: Path, n_tokens: int) -> None:
    vision = {"image_size": IMAGE_SIZE, "layers": 12, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": TEXT_LENGTH, "vocab_size": n_tokens, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    model = CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
