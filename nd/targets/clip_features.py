"""clip_vision, clip_image and clip_text: what a CLIP model says about images and captions.

Versatile Diffusion is conditioned on the first and the last, which makes them targets of Brain-Diffuser and MindEye:
every token of an image or a caption in the space that both share, divided by the length of the token that stands for
the whole (ozcelikfu/brain-diffuser@31d52c0:versatile_diffusion/lib/model_zoo/clip.py, FrozenCLIP). Brain-Diffuser takes
the images to 512 px before CLIP's own preprocessing; here CLIP sees the stimuli.
Shapes: B batch, T tokens, W width of the image transformer, D width of the common space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.clip import Clip
from nd.backbone.clip_pictures import MEAN, STD
from nd.backbone.loading import DTYPES, Backbone
from nd.targets.base import Items, Needs, library
from nd.targets.components import ClipImageTarget, ClipTextTarget, ClipVisionTarget
from nd.targets.text_condition import caption_mean

ClipTarget = ClipVisionTarget | ClipImageTarget | ClipTextTarget


class VisionPass:
    """Images through the image transformer: what `Items.once` runs, once for all targets of a batch that need it."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(self, items: Items) -> Tensor:
        """Last hidden states (B, T, W), before the final norm."""
        with torch.inference_mode():
            return self.clip.encode_images(items.images)

    def fingerprint(self) -> dict[str, Any]:
        """Weights and preprocessing."""
        return {
            "resize": "shorter side, Pillow's bicubic, antialiased, in bytes",
            "crop": "centre",
            "image_size": self.clip.image_size,
            "mean": list(MEAN),
            "std": list(STD),
            "clip": self.clip.weights_hash,
            "library": library("transformers"),
        }


class _OfImages:
    """What the targets of the image half share."""

    name: str
    rule: str
    needs: Needs = "images"

    def __init__(self, forward: VisionPass) -> None:
        self.forward = forward

    def fingerprint(self) -> dict[str, Any]:
        """Rule, weights and preprocessing."""
        return {"target": self.name, "rule": self.rule, **self.forward.fingerprint()}


class ClipVision(_OfImages):
    """All tokens of an image, normed, projected, and divided by the length of the projected class token."""

    name = "clip_vision"
    rule = "final norm and projection of all tokens, divided by the length of the class token"

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, D)."""
        return self.forward.clip.vision_shape

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, T, D) float32; the first token of each image has length 1."""
        with torch.inference_mode():
            tokens_BTD = self.forward.clip.project_images(items.once(self.forward))
            return (tokens_BTD / tokens_BTD[:, :1].norm(dim=-1, keepdim=True)).cpu().numpy()


class ClipImage(_OfImages):
    """The image embedding: the class token, normed and projected, at its own length (transformers' image_embeds)."""

    name = "clip_image"
    rule = "final norm and projection of the class token, not normalised"

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return self.forward.clip.vision_shape[1:]

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Embeddings (B, D) float32."""
        with torch.inference_mode():
            return self.forward.clip.project_images(items.once(self.forward)[:, 0]).cpu().numpy()


class ClipText:
    """All tokens of a caption, projected and divided by the length of the projected end token; mean over captions.

    The mean is not normalised again, so it is the shorter the less the captions agree.
    """

    name = "clip_text"
    needs: Needs = "captions"

    def __init__(self, clip: Clip, max_captions: int) -> None:
        self.clip, self.max_captions = clip, max_captions

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, D)."""
        return self.clip.text_shape

    def fingerprint(self) -> dict[str, Any]:
        """Rule, weights, tokenizer and number of captions."""
        return {
            "target": self.name,
            "rule": "mean over captions of the projected tokens, divided by the length of the end token",
            "max_captions": self.max_captions,
            "clip": self.clip.weights_hash,
            "tokenizer": self.clip.tokenizer_hash,
            "library": library("transformers"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, T, D) float32; an image without caption is a UserError."""
        return caption_mean(self._encode, items, self.max_captions, self.name)

    def _encode(self, captions: list[str]) -> Tensor:
        tokens_UTD, ends_UD = self.clip.encode_text(captions)
        return tokens_UTD / ends_UD.norm(dim=-1)[:, None, None]


def clip_of(config: ClipTarget, backbone: Backbone) -> Clip:
    """The CLIP model of `target.clip`, one for all targets of a backbone."""
    key = ("clip", config.clip, config.precision)
    return backbone.shared(key, lambda: Clip(config.clip, backbone.device, DTYPES[config.precision]))


def vision_pass(config: ClipTarget, backbone: Backbone) -> VisionPass:
    """The pass through its image transformer, one for all targets of a backbone."""
    key = ("clip vision pass", config.clip, config.precision)
    return backbone.shared(key, lambda: VisionPass(clip_of(config, backbone)))
