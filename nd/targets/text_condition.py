"""c: what the UNet is conditioned on, averaged over the captions of a picture.

Shapes: B batch, K captions of all pictures together, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.errors import UserError
from nd.targets.base import Items, Needs, library


class TextCondition:
    """Mean over a picture's first captions of the text encoder's last hidden state, after its final norm.

    HaoyyLi/NeuralDiffuser@9286cad:src/feature_extraction/img2feat_sd_pipe.py averages all captions in the same way.
    """

    name = "c"
    needs: Needs = "captions"

    def __init__(self, backbone: Backbone, max_captions: int) -> None:
        self.backbone, self.max_captions = backbone, max_captions

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, D)."""
        return self.backbone.text_shape

    def fingerprint(self) -> dict[str, Any]:
        """Weights, tokenizer and number of captions."""
        return {
            "target": "c",
            "rule": "mean over captions of the last hidden state, padded to full length",
            "max_captions": self.max_captions,
            "text_encoder": self.backbone.hash_of("text_encoder"),
            "tokenizer": self.backbone.hash_of("tokenizer"),
            "library": library("transformers"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Conditions (B, T, D) float32; a picture without caption is a UserError."""
        groups = [captions[: self.max_captions] for captions in items.captions]
        if not all(groups):
            raise UserError("a picture has no caption; target c needs at least one. Write captions into stimuli.h5.")
        flat = [caption for group in groups for caption in group]
        # Captions repeat between pictures; each is encoded once.
        unique, where_K = np.unique(np.array(flat, dtype=object), return_inverse=True)
        with torch.inference_mode():
            encoded_UTD = self.backbone.encode_text([str(caption) for caption in unique]).float().cpu().numpy()
        first_B = np.concatenate([[0], np.cumsum([len(group) for group in groups])[:-1]])
        counts_B11 = np.array([len(group) for group in groups], np.float32)[:, None, None]
        summed_BTD: NDArray[np.float32] = np.add.reduceat(encoded_UTD[where_K], first_B, axis=0)
        return summed_BTD / counts_B11
