"""Fit the CLIP of a small backbone: a vision transformer and a text transformer, contrastively, on captions.

The text tower becomes the backbone's text encoder and the image tower its vision feature extractor.
Shapes: N images, K captions of each, B batch, L tokens, D text width, E embedding.
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
from backbone_training.patches import Patches, PatchHeads
from backbone_training.vae import as_tensor

# Images enter as 2x - 1: mean and deviation of one half, declared in open_clip_config.json.
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
    # Half of the patches are hidden until the learning rate falls: twice the images a second, and the last stretch
    # sees whole images (FLIP, Li et al. 2023, section 3.1).
    patch_dropout: float = 0.5
    mlp_ratio: float = 4.0
    positions: str = "learnable"  # or "sin_cos_2d": neighbours are known from the first step on
    text_width: int = 128
    text_heads: int = 4
    text_layers: int = 3
    # Consecutive images that enter a batch together; where they share much, their captions are hard to tell apart.
    group: int = 1
    # Weight of a second task of the image tower: to tell which words are said of an image, through a layer that only
    # training uses. Every word is then a label of its own (as in Huang et al. 2024, "Classification done right for
    # vision-language pre-training"), which teaches shapes to a small tower much sooner than the contrast does.
    words_weight: float = 0.0
    # Weight of a third one, where it is known what each patch shows: to tell that, through another such layer.
    patches_weight: float = 0.0
    # Attention starts out local and close to the identity (Trockman & Kolter 2023, "Mimetic initialization of
    # self-attention layers"): a transformer that has seen few images need not find neighbourhoods first.
    mimetic: bool = False
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
        "mlp_ratio": recipe.mlp_ratio,
        "pos_embed_type": recipe.positions,
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
    patches: Patches | None = None,
) -> CLIP:
    """Both towers fitted to uint8 RGB images and their captions (the same number for every image).

    patches: what each patch of the images shows, for `recipe.patches_weight`.
    """
    if patches is not None and recipe.patch_dropout:
        raise ValueError("labels of patches need all patches: patch_dropout=0")
    torch.manual_seed(seed)
    config = clip_config(recipe, images_NHW3.shape[1], tokenizer)
    model = CLIP(**config | {"vision_cfg": config["vision_cfg"] | {"patch_dropout": recipe.patch_dropout}})
    model.visual.output_tokens = True
    if recipe.mimetic:
        start_local(model.visual.transformer, recipe.image_head_width)
    ids_NKL = tokenize(tokenizer, captions)
    helpers = _Helpers(recipe, words_said(ids_NKL, len(tokenizer)), patches)

    def loss_of_step(draw: Draw) -> Tensor:
        if recipe.patch_dropout:
            model.visual.patch_dropout.prob = 0.0 if is_falling(draw.step, recipe.how) else recipe.patch_dropout
        rows = draw_groups(draw.numpy, len(images_NHW3), recipe)
        ids_BL = ids_NKL[rows, draw.numpy.integers(ids_NKL.shape[1], size=len(rows))]
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.how.bf16):
            image_BE, tokens_BPW = model.visual(as_tensor(images_NHW3[rows]))
            return clip_loss(model, image_BE, ids_BL) + helpers(image_BE, tokens_BPW, rows)

    fit(nn.ModuleDict({"clip": model, "helpers": helpers}), loss_of_step, recipe.how, seed=seed, checkpoint=checkpoint)
    model.visual.output_tokens = False
    return model


class _Helpers(nn.Module):
    """Tasks that help the image tower, through layers that only training uses: words said, and what patches show."""

    def __init__(self, recipe: ClipRecipe, said_NW: Tensor, patches: Patches | None) -> None:
        super().__init__()
        self.recipe, self.said_NW = recipe, said_NW
        self.words = words_head(recipe.embedding, said_NW)
        self.patches = PatchHeads(recipe.image_width, patches) if patches else None

    def forward(self, image_BE: Tensor, tokens_BPW: Tensor, rows: NDArray[np.int64]) -> Tensor:
        loss = image_BE.new_zeros((), dtype=torch.float32)
        if self.recipe.words_weight:
            loss = loss + self.recipe.words_weight * words_loss(self.words(image_BE), self.said_NW[rows])
        if self.patches is not None:
            loss = loss + self.recipe.patches_weight * self.patches(tokens_BPW, rows)
        return loss


@torch.no_grad()
def start_local(transformer: nn.Module, head_width: int) -> None:
    """Mimetic initialization with its paper's constants: query times key near .7 I, value times output near -.4 I."""
    for block in transformer.resblocks:
        width = block.attn.embed_dim
        query, key, value = block.attn.in_proj_weight.chunk(3)
        for start in range(0, width, head_width):
            u, s, vt = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width))
            root = s[:head_width].sqrt()[:, None]
            query[start : start + head_width] = root * u.T[:head_width]
            key[start : start + head_width] = root * vt[:head_width]
        u, s, vt = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        block.attn.out_proj.weight.copy_(u * s.sqrt())
        value.copy_(s.sqrt()[:, None] * vt)


def words_said(ids_NKL: Tensor, n_tokens: int) -> Tensor:
    """(N, W) float16: the share of each image's captions that hold each token."""
    said_NW = torch.zeros(len(ids_NKL), n_tokens, dtype=torch.float16)
    for ids_NL in ids_NKL.unbind(1):
        there_NW = torch.zeros_like(said_NW).scatter_(1, ids_NL, 1.0)
        said_NW += there_NW / ids_NKL.shape[1]
    return said_NW


def words_head(width: int, said_NW: Tensor) -> nn.Linear:
    """A layer from image embeddings to words, which begins by predicting how often each is said."""
    head = nn.Linear(width, said_NW.shape[1])
    with torch.no_grad():
        head.bias.copy_(said_NW.float().mean(0).clamp(1e-3, 1 - 1e-3).logit())
    return head


def words_loss(logits_BW: Tensor, said_BW: Tensor) -> Tensor:
    """Binary cross-entropy, summed over words and averaged over images."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits_BW.float(), said_BW.float(), reduction="sum")
    return entropy / len(said_BW)


def draw_groups(rng: np.random.Generator, n: int, recipe: ClipRecipe) -> NDArray[np.int64]:
    """Rows of a batch: whole groups of consecutive images, by lot."""
    first = rng.integers(n // recipe.group, size=recipe.how.batch // recipe.group) * recipe.group
    return (first[:, None] + np.arange(recipe.group)).ravel()


def clip_loss(model: CLIP, image_BE: Tensor, ids_BL: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch. Rows of the same caption are all right answers.

    image_BE: image embeddings of any length.
    """
    image_BE = nn.functional.normalize(image_BE.float(), dim=-1)
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
