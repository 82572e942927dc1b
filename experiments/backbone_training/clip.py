"""Fit the CLIP of a small backbone: a vision transformer and a text transformer, contrastively, on captions.

The text tower becomes the backbone's text encoder and the image tower its vision feature extractor.
Shapes: N pictures, K captions of each, B batch, L tokens, D text width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from backbone_training.loop import Draw, Optimisation, fit, is_falling
from backbone_training.vae import as_tensor

# Pictures enter as 2x - 1: mean and deviation of one half, declared in open_clip_config.json.
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
MAX_LOGIT_SCALE = float(np.log(100.0))  # CLIP paper, section 2.5


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """Sizes and training of both towers."""

    embedding: int = 128
    image_width: int = 96
    image_layers: int = 12
    image_head_width: int = 32
    patch: int = 8
    # Half of the patches are hidden until the learning rate falls: twice the pictures a second, and the last stretch
    # sees whole pictures (FLIP, Li et al. 2023, section 3.1).
    patch_dropout: float = 0.5
    text_width: int = 128
    text_heads: int = 4
    text_layers: int = 3
    how: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=1400, batch=128, learning_rate=1e-3, warmup=150, weight_decay=0.05, average=0.99
        )
    )


def clip_config(recipe: ClipRecipe, image_size: int, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The `model_cfg` of open_clip. Plain GELU in both towers."""
    vision = {
        "image_size": image_size,
        "layers": recipe.image_layers,
        "width": recipe.image_width,
        "head_width": recipe.image_head_width,
        "patch_size": recipe.patch,
    }
    text = {
        "context_length": tokenizer.model_max_length,
        "vocab_size": len(tokenizer),
        "width": recipe.text_width,
        "heads": recipe.text_heads,
        "layers": recipe.text_layers,
    }
    return {"embed_dim": recipe.embedding, "vision_cfg": vision, "text_cfg": text, "quick_gelu": False}


def fit_clip(
    images_NHW3: NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    tokenizer: CLIPTokenizer,
    recipe: ClipRecipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
) -> CLIP:
    """Both towers fitted to uint8 RGB pictures and their captions (the same number for every picture)."""
    torch.manual_seed(seed)
    config = clip_config(recipe, images_NHW3.shape[1], tokenizer)
    model = CLIP(**config | {"vision_cfg": config["vision_cfg"] | {"patch_dropout": recipe.patch_dropout}})
    ids_NKL = tokenize(tokenizer, captions)

    def loss_of_step(draw: Draw) -> Tensor:
        model.visual.patch_dropout.prob = 0.0 if is_falling(draw.step, recipe.how) else recipe.patch_dropout
        rows = draw.numpy.integers(len(images_NHW3), size=recipe.how.batch)
        ids_BL = ids_NKL[rows, draw.numpy.integers(ids_NKL.shape[1], size=len(rows))]
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.how.bf16):
            return clip_loss(model, as_tensor(images_NHW3[rows]), ids_BL)

    fit(model, loss_of_step, recipe.how, seed=seed, checkpoint=checkpoint)
    return model


def clip_loss(model: CLIP, images_B3HW: Tensor, ids_BL: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch. Rows of the same caption are all right answers."""
    image_BE = model.encode_image(images_B3HW, normalize=True).float()
    text_BE = model.encode_text(ids_BL, normalize=True).float()
    logits_BB = model.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp() * image_BE @ text_BE.T
    same_BB = (ids_BL[:, None] == ids_BL[None]).all(-1).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits_BB, target_BB) + cross_entropy(logits_BB.T, target_BB)) / 2


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[Sequence[str]]) -> Tensor:
    """Token ids (N, K, L) int64, padded with END to the tokenizer's length."""
    flat = [caption for group in captions for caption in group]
    coded = tokenizer(flat, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(coded["input_ids"]).view(len(captions), -1, tokenizer.model_max_length)


def text_encoder(model: CLIP, recipe: ClipRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text tower as a transformers CLIPTextModel, whose last hidden state is that after the final norm."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=recipe.embedding,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    encoder.load_state_dict(_text_weights(model, encoder, recipe.text_layers))
    return encoder.eval()


def _text_weights(model: CLIP, encoder: CLIPTextModel, layers: int) -> dict[str, Tensor]:
    """Rename the text tower's weights; open_clip keeps query, key and value in one matrix."""
    named = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        **{f"final_layer_norm.{k}": v for k, v in model.ln_final.state_dict().items()},
    }
    for i in range(layers):
        block, prefix = model.transformer.resblocks[i], f"encoder.layers.{i}."
        parts = {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2, "self_attn.out_proj": block.attn.out_proj}
        parts |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
        named |= {f"{prefix}{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
        for kind, packed in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
            q, k, v = packed.chunk(3)
            named |= {f"{prefix}self_attn.{n}_proj.{kind}": t for n, t in (("q", q), ("k", k), ("v", v))}
    # transformers 4 nests the tower one level deeper than transformers 5.
    outer = next(iter(encoder.state_dict())).partition("embeddings.")[0]
    return {outer + name: value.detach().clone() for name, value in named.items()}


@torch.inference_mode()
def embed_images(model: CLIP, images_NHW3: NDArray[np.uint8], batch: int = 128) -> Tensor:
    """Unit-length image embeddings (N, E)."""
    parts = (as_tensor(images_NHW3[i : i + batch]) for i in range(0, len(images_NHW3), batch))
    return torch.cat([model.encode_image(part, normalize=True) for part in parts])


@torch.inference_mode()
def embed_texts(model: CLIP, ids_NL: Tensor) -> Tensor:
    """Unit-length caption embeddings (N, E)."""
    return model.encode_text(ids_NL, normalize=True)
