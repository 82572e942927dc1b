"""T2I-Adapters: small networks that turn an image-like map into features, which a frozen UNet adds on its way down.

Mou et al. (arXiv:2302.08453); the networks are diffusers' T2IAdapter. SoulDiffuser's figure shows two of them, for an
edge map and a colour mosaic, their features weighed by omega_1 and omega_2 and summed before they enter the UNet
(LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg).

Shapes: B batch, S side of the images, C h w features of a block of the UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nd.backbone.loading import NO_ACCELERATE, Backbone
from nd.backbone.reading import read_module
from nd.backbone.tower import resize
from nd.backbone.weights import module_folder
from nd.config import BackboneConfig
from nd.errors import UserError

EXAMPLE = "one of TencentARC/t2iadapter_* that was saved anew as safetensors"
GREY, RGB = 1, 3

Shape = tuple[int, int, int]


def edge_image(edge_BHW: Tensor, side: int, channels: int = GREY) -> Tensor:
    """Return edge maps as an adapter reads them: bright edges on black.

    Args:
        edge_BHW: target edge, float in [0, 1]; decoded ones may lie outside and are clipped.
        side: S, to which they are brought bilinearly.
        channels: 1, or 3 that are all the same.

    Returns:
        (B, channels, S, S) in [0, 1].
    """
    image_B1SS = resize(edge_BHW[:, None], side).clamp(0, 1)
    return image_B1SS.expand(-1, channels, -1, -1)


def colour_image(colour_BKK3: Tensor, side: int) -> Tensor:
    """Return mosaics as an adapter reads them: every cell a square of its colour, with hard borders.

    TencentARC/T2I-Adapter@16bba67:ldm/modules/extra_condition/api.py enlarges its palettes in the same way.

    Args:
        colour_BKK3: target colour, float RGB in [0, 1]; decoded ones may lie outside and are clipped.
        side: S.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    return functional.interpolate(colour_BKK3.permute(0, 3, 1, 2), (side, side), mode="nearest").clamp(0, 1)


def block_shapes(unet: Any, latent_side: int) -> list[Shape]:
    """Return the shape (C, h, w) of what can be added in each block of a UNet on its way down, and in its middle.

    In a block with cross-attention that is before the downsampling, in one without after it
    (diffusers 0.42.1 models/unets/unet_2d_condition.py:1135-1155); what is left over may be added after the middle.

    Args:
        unet: a diffusers UNet2DConditionModel.
        latent_side: of its input.
    """
    side, shapes = latent_side, []
    for width, block in zip(unet.config["block_out_channels"], unet.down_blocks, strict=True):
        below = side if block.downsamplers is None else -(-side // 2)
        inside = side if getattr(block, "has_cross_attention", False) else below
        shapes.append((int(width), inside, inside))
        side = below
    return [*shapes, (shapes[-1][0], side, side)]


class AdaptedBackbone(Backbone):
    """A backbone with two adapters beside its own modules, each read when first used."""

    def __init__(self, config: BackboneConfig, device: str | torch.device, edge: str, colour: str) -> None:
        """Take where everything lies.

        Args:
            config: of the backbone.
            device: where all modules go.
            edge: the adapter of edge maps, as ``method.edge_adapter`` names it.
            colour: that of mosaics.
        """
        super().__init__(config, device)
        self._given = {"edge": edge, "colour": colour}

    @cached_property
    def edge_adapter(self) -> Any:
        """A diffusers T2IAdapter."""
        return load_adapter(self._given["edge"], "method.edge_adapter", self.device, self.dtype)

    @cached_property
    def colour_adapter(self) -> Any:
        """A diffusers T2IAdapter."""
        return load_adapter(self._given["colour"], "method.colour_adapter", self.device, self.dtype)


def load_adapter(given: str, field: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a frozen T2IAdapter.

    Args:
        given: 'package://<name>', a folder with config.json and safetensors, or a hub id.
        field: the setting that names it, for messages.
        device: where it goes.
        dtype: its arithmetic.

    Raises:
        UserError: it is neither here nor reachable, damaged, or holds another kind of network.
    """
    from diffusers import T2IAdapter

    folder: Path = module_folder(given, field, EXAMPLE)
    return read_module(T2IAdapter, f"the adapter {field}", folder, device, torch_dtype=dtype, **NO_ACCELERATE)


def check_adapter(
    adapter: Any, field: str, unet: Any, image_side: int, latent_side: int, channels: Sequence[int]
) -> None:
    """Raise UserError where an adapter does not belong to a UNet.

    Args:
        adapter: a T2IAdapter.
        field: the setting that names it.
        unet: whose blocks its features are added in.
        image_side: S of the images it reads.
        latent_side: of the UNet's input.
        channels: that its input may have.
    """
    reads, factor = int(adapter.config["in_channels"]), int(adapter.config["downscale_factor"])
    if reads not in channels:
        wanted = " or ".join(str(n) for n in channels)
        raise UserError(f"{field}: the adapter reads images of {reads} channels, but these have {wanted}.")
    if image_side % factor:
        raise UserError(
            f"{field}: the adapter folds squares of {factor} x {factor} pixels, which images of {image_side} px "
            f"(backbone.image_size) are no multiple of."
        )
    weight = next(adapter.parameters())
    with torch.no_grad():
        maps = adapter(torch.zeros(1, reads, image_side, image_side, device=weight.device, dtype=weight.dtype))
    found, wanted_shapes = [tuple(one.shape[1:]) for one in maps], block_shapes(unet, latent_side)
    if len(found) > len(wanted_shapes) or found != wanted_shapes[: len(found)]:
        raise UserError(
            f"{field}: the adapter makes features of shape {found}, but the UNet of this backbone takes "
            f"{wanted_shapes[:-1]}, one more of {wanted_shapes[-1]} allowed. It was made for another backbone: give an "
            "adapter of the same widths, or change backbone.weights."
        )


def weighed(maps: Sequence[Sequence[Tensor]], omegas: Sequence[float]) -> list[Tensor]:
    """Return the sum over adapters of their features times their weights, block by block.

    Args:
        maps: of each adapter, its features (B, C, h, w) of each block.
        omegas: one weight per adapter.
    """
    n_blocks = max((len(one) for one in maps), default=0)
    return [
        torch.stack([omega * one[k] for one, omega in zip(maps, omegas, strict=True) if k < len(one)]).sum(0)
        for k in range(n_blocks)
    ]
