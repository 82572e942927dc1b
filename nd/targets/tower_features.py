"""g: the features that guide the sampler, from the first blocks of the image tower.

Shapes: B batch, L layers, T tokens (class token first, then patches row-major), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.backbone.tower import BlockFeatures
from nd.targets.base import Items, Needs, library


class TowerFeatures:
    """MLP-branch outputs, before the residual add, of chosen blocks (see `nd.backbone.tower.BlockFeatures`)."""

    name = "g"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone, layers: Sequence[int]) -> None:
        self.backbone, self.layers = backbone, list(layers)

    @cached_property
    def features(self) -> BlockFeatures:
        """The truncated tower."""
        return BlockFeatures(self.backbone.tower, self.layers)

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, T, D)."""
        return self.features.shape

    def fingerprint(self) -> dict[str, Any]:
        """Weights, layers and preprocessing."""
        config = self.backbone.config
        return {
            "target": "g",
            "rule": "mlp.c_proj before the residual, bilinear antialiased resize",
            "layers": self.layers,
            "image_size": config.image_size,
            "tower_size": config.tower_size,
            "mean": list(config.tower_mean),
            "std": list(config.tower_std),
            "tower": self.backbone.hash_of("tower"),
            "library": library("open_clip_torch"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, L, T, D) float32.

        Pictures pass through the backbone's own size first, so that they are what guidance sees: decoded pictures.
        """
        with torch.inference_mode():
            seen = self.backbone.tower_input(self.backbone.to_float(items.images))
            return torch.stack(self.features(seen), dim=1).float().cpu().numpy()
