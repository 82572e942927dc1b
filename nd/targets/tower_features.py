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
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.backbone.tower import BlockFeatures
from nd.targets.base import Items, Needs, library


class TowerPass:
    """Images through the first blocks of the image tower: what `Items.once` runs, once for all targets that need it.

    Images pass through the backbone's own size first, so that they are what guidance sees: decoded images. With
    `direct` they come straight to the tower's size, as in the released extraction
    (HaoyyLi/NeuralDiffuser@9286cad:src/img2feat_guidance.py: stimuli of 425 px to 224 px).
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], direct: bool = False) -> None:
        self.backbone, self.layers, self.direct = backbone, list(layers), direct

    @cached_property
    def blocks(self) -> BlockFeatures:
        """The truncated tower."""
        return BlockFeatures(self.backbone.tower, self.layers)

    def __call__(self, items: Items) -> list[Tensor]:
        """Features (B, T, D) of each layer, in the order of `layers`."""
        size = items.images.shape[1] if self.direct else self.backbone.config.image_size
        with torch.inference_mode():
            return self.blocks(self.backbone.tower_input(self.backbone.to_float(items.images, size)))

    def fingerprint(self) -> dict[str, Any]:
        """Weights, layers and preprocessing."""
        config = self.backbone.config
        return ({"direct": True} if self.direct else {}) | {
            "layers": self.layers,
            "image_size": config.image_size,
            "tower_size": config.tower_size,
            "filter": config.tower_filter,
            "antialias": config.tower_antialias,
            "mean": list(config.tower_mean),
            "std": list(config.tower_std),
            "tower": self.backbone.hash_of("tower"),
            "library": library("open_clip_torch"),
        }


class TowerFeatures:
    """MLP-branch outputs, before the residual add, of chosen blocks (see `nd.backbone.tower.BlockFeatures`)."""

    name = "g"
    needs: Needs = "images"

    def __init__(self, forward: TowerPass) -> None:
        self.forward = forward

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, T, D)."""
        return self.forward.blocks.shape

    def fingerprint(self) -> dict[str, Any]:
        """Weights, layers and preprocessing."""
        way = "" if self.forward.direct else "bilinear, antialiased to image_size, then "
        rule = f"mlp.c_proj before the residual; {way}by the filter to tower_size"
        return {"target": "g", "rule": rule} | self.forward.fingerprint()

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, L, T, D) float32."""
        with torch.inference_mode():
            return torch.stack(items.once(self.forward), dim=1).float().cpu().numpy()


def tower_pass(backbone: Backbone, layers: Sequence[int], direct: bool = False) -> TowerPass:
    """The pass through these blocks, one for all targets of a backbone."""
    return backbone.shared(("tower pass", direct, *layers), lambda: TowerPass(backbone, layers, direct))
