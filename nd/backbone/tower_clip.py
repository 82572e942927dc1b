"""The open_clip model of a backbone folder in transformers' layout, number for number, made when it is read.

So the small backbones need no second copy of their image tower and text encoder to serve where a CLIP model of
transformers is wanted.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nd.backbone.clip_pictures import MEAN, STD
from nd.backbone.image_tower import load_clip
from nd.backbone.reading import reading
from nd.backbone.weights import hash_folder
from nd.files import sha256_json

TOWER, WORDS, TOKENIZER = "image_tower", "text_encoder", "tokenizer"  # folders that are read
NAMED_ALIKE = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
EXACT, QUICK = "gelu", "quick_gelu"


def is_backbone(folder: Path) -> bool:
    """Whether a folder is a backbone with an open_clip model inside, and no CLIP model of transformers itself."""
    return not (folder / "model.safetensors").is_file() and (folder / TOWER).is_dir() and (folder / TOKENIZER).is_dir()


def backbone_hash(folder: Path) -> str:
    """12 hexadecimal digits of what ``clip_of_tower`` reads."""
    return sha256_json(["clip of tower", hash_folder(folder / TOWER), hash_folder(folder / WORDS)])


@torch.inference_mode(False)  # weights made inside inference mode could never take part in a gradient
def clip_of_tower(folder: Path) -> Any:
    """Return a transformers CLIPModel, float32, for images normalised as OpenAI's.

    Args:
        folder: a backbone whose image_tower is an open_clip folder with both halves, and whose text_encoder's
            configuration says which tokens begin and end a caption.

    Raises:
        UserError: files are absent, damaged, or of another kind of model.
    """
    from transformers import CLIPModel

    model = load_clip(str(folder / TOWER)).float()
    with reading("the CLIP model of an image tower", folder):
        words = json.loads((folder / WORDS / "config.json").read_text(encoding="utf-8"))
        made = CLIPModel(_config(model, words))
        made.load_state_dict(_weights(model), strict=True)
    return made


def config_of_tower(folder: Path) -> Any:
    """Return the configuration of ``clip_of_tower``, which reads the model once for each version of its files."""
    return copy.deepcopy(_read_config(folder, backbone_hash(folder)))


@lru_cache(maxsize=8)
def _read_config(folder: Path, version: str) -> Any:
    return clip_of_tower(folder).config


def _config(model: Any, words: dict[str, Any]) -> Any:
    """Return the transformers CLIPConfig of an open_clip model."""
    from transformers import CLIPConfig

    vision = model.visual
    text = {name: words[name] for name in NAMED_ALIKE}
    text |= {"max_position_embeddings": len(model.positional_embedding), **_sizes(model.transformer.resblocks)}
    image = {"image_size": vision.image_size[0], "patch_size": vision.conv1.kernel_size[0]}
    image |= _sizes(vision.transformer.resblocks)
    return CLIPConfig(text_config=text, vision_config=image, projection_dim=vision.proj.shape[1])


def _sizes(blocks: Any) -> dict[str, Any]:
    """Return the sizes of a transformer by transformers' names."""
    mlp, attention = blocks[0].mlp, blocks[0].attn
    return {
        "hidden_size": mlp.c_fc.in_features,
        "intermediate_size": mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": attention.num_heads,
        "hidden_act": EXACT if isinstance(mlp.gelu, torch.nn.GELU) else QUICK,
    }


def _weights(model: Any) -> dict[str, Tensor]:
    """Return open_clip's weights by transformers' names, for images normalised as OpenAI's.

    Both see (p - mean) / std of pixels p in [0, 1], each by numbers of its own: the patch convolution takes the
    difference in its weights, and in the patches' positions where it would need a bias.
    """
    vision, seen = model.visual, model.visual.preprocess_cfg
    own_mean, own_std, mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (seen["mean"], seen["std"], MEAN, STD))
    scale, shift = std / own_std, (mean - own_mean) / own_std
    kernel, places = vision.conv1.weight.detach(), vision.positional_embedding.detach().clone()
    places[1:] += (kernel * shift).sum(dim=(1, 2, 3))
    named = {
        "vision_model.embeddings.class_embedding": vision.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": kernel * scale,
        "vision_model.embeddings.position_embedding.weight": places,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        "visual_projection.weight": vision.proj.T,
        "text_projection.weight": model.text_projection.T,
        "logit_scale": model.logit_scale,
    }
    norms = {
        "vision_model.pre_layrnorm": vision.ln_pre, "vision_model.post_layernorm": vision.ln_post,
        "text_model.final_layer_norm": model.ln_final,
    }  # fmt: skip
    named |= {f"{name}.{k}": v for name, norm in norms.items() for k, v in norm.state_dict().items()}
    for half, transformer in (("vision_model", vision.transformer), ("text_model", model.transformer)):
        for i, block in enumerate(transformer.resblocks):
            named |= _block(f"{half}.encoder.layers.{i}.", block)
    return {name: value.detach().clone().contiguous() for name, value in named.items()}


def _block(prefix: str, block: Any) -> dict[str, Tensor]:
    """Return one block's weights; open_clip keeps query, key and value in one matrix."""
    parts = {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2, "self_attn.out_proj": block.attn.out_proj}
    parts |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
    named = {f"{prefix}{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    for kind, packed in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
        for letter, value in zip("qkv", packed.chunk(3), strict=True):
            named[f"{prefix}self_attn.{letter}_proj.{kind}"] = value
    return named
