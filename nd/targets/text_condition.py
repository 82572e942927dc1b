"""c: what the UNet is conditioned on, averaged over the captions of an image.

Shapes: B batch, K captions of all its images together, U of them distinct, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.errors import UserError
from nd.targets.base import Items, Needs, library


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
        return caption_mean(self._encode, items, self.max_captions, self.name)

    def _encode(self, captions: list[str]) -> Tensor:
        return self.backbone.encode_text(captions, self.tokens)


def caption_mean(
    encode: Callable[[list[str]], Tensor], items: Items, max_captions: int, target: str
) -> NDArray[np.float32]:
    """Average the encoded captions of each image; a caption that occurs several times is encoded once.

    Args:
        encode: captions to features (U, ...).
        items: B images with their captions.
        max_captions: captions averaged per image, the first ones; 0 means all.
        target: the target's name, for the message.

    Returns:
        (B, ...) float32.

    Raises:
        UserError: an image has no caption.
    """
    groups = [list(own[: max_captions or None]) for own in items.captions]
    if without := [int(i) for i, own in zip(items.ids, groups, strict=True) if not own]:
        raise UserError(
            f"image {without[0]} has no caption; target {target} needs at least one. Write captions into stimuli.h5."
        )
    flat = [caption for group in groups for caption in group]
    unique, where_K = np.unique(np.array(flat, dtype=object), return_inverse=True)
    with torch.inference_mode():
        encoded_U = encode([str(caption) for caption in unique]).float().cpu().numpy()
    first_B = np.concatenate([[0], np.cumsum([len(group) for group in groups])[:-1]])
    counts_B = np.array([len(group) for group in groups], np.float32)
    summed_B: NDArray[np.float32] = np.add.reduceat(encoded_U[where_K], first_B, axis=0)
    return summed_B / counts_B.reshape(-1, *[1] * (summed_B.ndim - 1))
