"""The image halves of OpenAI's CLIP, un-normalised projected embeddings, from transformers' or open_clip's files.

Both layouts hold the same numbers; the text half is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nd.metrics.networks.layers import Embedding
from nd.metrics.networks.weights import State


@dataclass(frozen=True)
class VisionShape:
    """A vision transformer of CLIP: widths, depth, patch side, embedding, and open_clip's name of the whole model."""

    width: int
    layers: int
    heads: int
    patch: int
    embedding: int
    open_clip: str


L14 = VisionShape(1024, 24, 16, 14, 768, "ViT-L-14-quickgelu")
B32 = VisionShape(768, 12, 12, 32, 512, "ViT-B-32-quickgelu")
OPEN_CLIP_KEY = "visual.conv1.weight"  # a file in open_clip's layout holds it


def clip_vit_l14(state: State | None) -> nn.Module:
    """ViT-L/14: 768 numbers."""
    return clip_image(L14, state)


def clip_vit_b32(state: State | None) -> nn.Module:
    """ViT-B/32: 512 numbers."""
    return clip_image(B32, state)


def clip_image(shape: VisionShape, state: State | None) -> nn.Module:
    """A module from normalised images (B, 3, 224, 224) to {"embedding": (B, D)}; state: of the whole model or half.

    OpenAI's weights want QuickGELU: exact GELU runs silently and changes every number.
    """
    if state is not None and OPEN_CLIP_KEY in state:
        import open_clip

        visual = open_clip.create_model(shape.open_clip, pretrained=None).visual
        visual.load_state_dict(_under(state, "visual."), strict=True)
        return Embedding(visual)
    network = _transformers(shape)
    if state is not None:
        ours = {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}
        # Older files also hold the numbers of the positions, which are no weights.
        network.load_state_dict({k: v for k, v in ours.items() if not k.endswith(".position_ids")}, strict=True)
    return Embedding(network, lambda output: output.image_embeds)


def _transformers(shape: VisionShape) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=shape.width, intermediate_size=4 * shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, patch_size=shape.patch, projection_dim=shape.embedding, image_size=224,
        hidden_act="quick_gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def _under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
