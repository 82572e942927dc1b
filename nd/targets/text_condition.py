"""c: what the UNet is conditioned on, averaged over the captions of an image.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.targets.base import Items, Needs, library
from nd.targets.caption_mean import caption_mean


class TextCondition:
    """Mean over an image's first captions of the text encoder's last hidden state, after its final norm.

    HaoyyLi/NeuralDiffuser@9286cad:src/img2feat_sd_pipe.py averages all captions in the same way.
    MindDiffuser pads and cuts the captions to 15 tokens, beginning and end included, and averages the first five
    (ReedOnePeck/MindDiffuser@c9773ac:data/utils_data/v1-inference.yaml, max_length).
    """

    name = "c"
    needs: Needs = "captions"

    def __init__(self, backbone: Backbone, max_captions: int, tokens: int = 0) -> None:
        """max_captions: averaged per image, 0 for all; tokens: T, 0 for the text encoder's full length."""
        self.backbone, self.max_captions, self.tokens = backbone, max_captions, tokens

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, D). UserError where the text encoder has no room for that many tokens."""
        return self.backbone.text_length(self.tokens), self.backbone.text_shape[1]

    def fingerprint(self) -> dict[str, Any]:
        """Weights, tokenizer, number of captions and of tokens."""
        return {
            "target": "c",
            "rule": "mean over captions of the last hidden state, padded",
            "max_captions": self.max_captions,
            "tokens": self.tokens,
            "text_encoder": self.backbone.hash_of("text_encoder"),
            "tokenizer": self.backbone.hash_of("tokenizer"),
            "library": library("transformers"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Conditions (B, T, D) float32; an image without caption is a UserError."""
        return caption_mean(self._encode, items.captions, self.max_captions, self.name)

    def _encode(self, captions: list[str]) -> Tensor:
        return self.backbone.encode_text(captions, self.tokens)
