"""Untrained CLIP models in transformers' layout, tiny and of full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers_backbone import letter_tokenizer
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

CLIP_TEXT_LENGTH = 16

# openai/clip-vit-large-patch14, config.json; its end token is given as 2, which no caption holds.
LARGE = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    },
    "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 224,
    },
}  # fmt: skip


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a whole random model to `folder`: 28 px images, 17 tokens of width 24, captions of 16; returns it."""
    torch.manual_seed(seed)
    tokenizer = letter_tokenizer(folder, CLIP_TEXT_LENGTH)
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    special = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 0}
    text = {"hidden_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": CLIP_TEXT_LENGTH, **special}
    vision = {"hidden_size": 32, "image_size": 28, "patch_size": 7}
    model = CLIPModel(CLIPConfig(projection_dim=24, text_config=text | layers, vision_config=vision | layers))
    randomise(model)
    model.save_pretrained(folder)
    return folder


def randomise(module: nn.Module) -> None:
    """Give every weight a random value at which attention, norms and biases all matter."""
    for name, value in module.named_parameters():
        with torch.no_grad():
            if value.ndim < 2 or "embedding" in name:
                value.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
            else:
                value.normal_(0.0, value[0].numel() ** -0.5)


def clip_tokenizer() -> CLIPTokenizer:
    """OpenAI's tokenizer, from the vocabulary that open_clip ships."""
    known = SimpleTokenizer()
    merges = [tuple(pair) for pair in known.bpe_ranks]
    tokens = {text.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): number
              for text, number in known.encoder.items()}  # fmt: skip
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77)
