"""The image tower as a feature extractor: what its blocks' MLP branches say about an image.

Shapes: B batch, 3 colours, H W rows and columns, T tokens (class token first, then patches row-major), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.errors import UserError, unknown

FILTERS = ("bilinear", "bicubic")
PLAIN_BLOCK_PARTS = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")


def resize(images_B3HW: Tensor, size: int, method: str = "bilinear", *, antialias: bool = True) -> Tensor:
    """Resize images to `size` x `size`; untouched when they already have that size. Differentiable.

    Defaults for filter and antialiasing differ between libraries and their versions; targets and guidance must see the
    same images, so both are said here. A bicubic filter overshoots a little beyond [0, 1]; nothing is clamped.

    Args:
        images_B3HW: float, any range.
        size: side wanted, pixels.
        method: 'bilinear' or 'bicubic'.
        antialias: low-pass before shrinking.

    Returns:
        (B, 3, size, size), the dtype of the input.

    Raises:
        UserError: a method that is neither 'bilinear' nor 'bicubic'.
    """
    if method not in FILTERS:
        raise unknown("filter (backbone.tower_filter)", method, FILTERS)
    if images_B3HW.shape[-2:] == (size, size):
        return images_B3HW
    # In float32 always: the antialiased kernels know no half precision on CPUs, and would round every tap on others.
    images_B3SS = functional.interpolate(
        images_B3HW.float(), (size, size), mode=method, align_corners=False, antialias=antialias
    )
    return images_B3SS.to(images_B3HW.dtype)


def preprocess(
    images_B3HW: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    method: str = "bilinear",
    *,
    antialias: bool = True,
) -> Tensor:
    """Bring images to what an image tower expects. Differentiable.

    Args:
        images_B3HW: float RGB in [0, 1].
        size: side of the tower's input, pixels.
        mean: subtracted, one number per colour.
        std: divided by, one number per colour.
        method: how images of another size are resized, 'bilinear' or 'bicubic'.
        antialias: low-pass before shrinking.

    Returns:
        (B, 3, size, size), the dtype and device of the input.
    """
    resized = resize(images_B3HW, size, method, antialias=antialias)
    mean_311 = resized.new_tensor(list(mean)).view(3, 1, 1)
    std_311 = resized.new_tensor(list(std)).view(3, 1, 1)
    return (resized - mean_311) / std_311


class BlockFeatures:
    """Outputs of `mlp.c_proj` in chosen blocks of an open_clip vision transformer, before the residual add.

    These are the guidance features of NeuralDiffuser: recorded under the names 'Linear-2', 'Linear-4', ... they are the
    MLP branches of the first blocks, not block outputs (HaoyyLi/NeuralDiffuser@9286cad:src/modules/utils/
    guidance_function.py). The pass stops inside the last wanted block. Differentiable.
    """

    def __init__(self, tower: Any, layers: Sequence[int]) -> None:
        """tower: open_clip `VisionTransformer`; layers: block numbers, counted from 0, in the order wanted."""
        blocks = _plain_blocks(tower)
        wrong = [layer for layer in layers if not 0 <= layer < len(blocks)]
        if wrong or not layers:
            raise UserError(
                f"target.layers={list(layers)}: the image tower has {len(blocks)} blocks, "
                f"so layers must be a non-empty list of numbers from 0 to {len(blocks) - 1}."
            )
        self.tower = tower
        self.layers = tuple(layers)
        self.blocks = blocks[: max(layers) + 1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of layers, tokens, width) of the features of one image."""
        tokens, width = self.tower.positional_embedding.shape
        return len(self.layers), tokens, width

    def __call__(self, images_B3HW: Tensor) -> list[Tensor]:
        """Features (B, T, D) of each wanted layer, in the order of `layers`, of preprocessed images."""
        x_BTD = self._embed(images_B3HW)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x_BTD = x_BTD + block.ls_1(attend(block.attn, block.ln_1(x_BTD)))
            branch_BTD = block.mlp(block.ln_2(x_BTD))
            if number in self.layers:
                found[number] = branch_BTD
            if number + 1 < len(self.blocks):
                x_BTD = x_BTD + block.ls_2(branch_BTD)
        return [found[layer] for layer in self.layers]

    def _embed(self, images_B3HW: Tensor) -> Tensor:
        """Patches and class token with their positions, normalised: the transformer's input (B, T, D)."""
        tower = self.tower
        self._check_size(images_B3HW)
        patches_BTD = tower.conv1(images_B3HW).flatten(2).transpose(1, 2)
        first_B1D = tower.class_embedding.to(patches_BTD.dtype).expand(len(patches_BTD), 1, -1)
        x_BTD = torch.cat([first_B1D, patches_BTD], dim=1) + tower.positional_embedding.to(patches_BTD.dtype)
        return tower.ln_pre(x_BTD)

    def _check_size(self, images_B3HW: Tensor) -> None:
        wanted, got = tuple(self.tower.image_size), tuple(images_B3HW.shape[-2:])
        if got != wanted:
            raise UserError(
                f"the image tower was built for images of {wanted[0]}x{wanted[1]} pixels but was given "
                f"{got[0]}x{got[1]}. Set backbone.tower_size={wanted[0]}."
            )


def attend(attention: nn.MultiheadAttention, x_BTD: Tensor) -> Tensor:
    """Self-attention (B, T, D) as the module computes it in eval mode.

    Without the copies that the module makes to bring tokens to the front: up to a quarter faster on CPUs.
    """
    joint = functional.linear(x_BTD, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = joint.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return functional.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def _plain_blocks(tower: Any) -> list[Any]:
    """The transformer blocks, after making sure that they are built as this module assumes."""
    blocks = list(getattr(getattr(tower, "transformer", None), "resblocks", []))
    plain = all(all(hasattr(block, part) for part in PLAIN_BLOCK_PARTS) for block in blocks)
    if not blocks or not plain or not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        raise UserError(
            f"the image tower is a {type(tower).__name__}, but feature guidance needs an open_clip vision transformer "
            "with plain residual blocks, for example backbone.image_tower=ViT-B-32-quickgelu:openai."
        )
    return blocks
