"""The dual-guided UNet of Versatile Diffusion: an image and a text transformer in every slot of cross-attention.

Xu et al., ICCV 2023 (arXiv:2211.08332), as Brain-Diffuser uses it: both transformers see the same features h, and what
each adds is weighed, h + (1 - s) (image(h) - h) + s (text(h) - h), s the share of the text. Convolutions are those of
the image UNet.

Shapes: B batch, C h w features, T tokens of image and text one after the other, D width of a condition.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from nd.backbone.clip import Clip
from nd.backbone.clip_pictures import MEAN, STD
from nd.backbone.loading import Backbone
from nd.backbone.reading import freeze, reading
from nd.backbone.weights import Source, fetch, find_source
from nd.config import BackboneConfig
from nd.errors import UserError

FIELD = "method.versatile"
HUB_ID = "shi-labs/versatile-diffusion"
SIZE = "several GB, image_unet alone 3.4; licence MIT"
IMAGE, TEXT = "image_unet", "text_unet"
# The two branches in diffusers' order, which is that of the names in folders saved with both in one.
N_IMAGE, N_TEXT = 0, 1
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
OLD_FILES = ("diffusion_pytorch_model.bin",)  # read without running code, where there is nothing else
SLOT = ".attentions."


@dataclass
class Mixing:
    """How the branches are weighed: one object for all slots of a UNet.

    Attributes:
        share: of the text, in [0, 1].
        n_image: tokens of a condition that are the image's, the first ones.
    """

    share: float = 0.5
    n_image: int = 257


class DualTransformer(nn.Module):
    """What stands in a slot of cross-attention; a branch without a share is not run."""

    def __init__(self, image: nn.Module, text: nn.Module, mixing: Mixing) -> None:
        """Take two transformers of one shape, and the mixing that all slots share."""
        super().__init__()
        self.transformers, self.mixing = nn.ModuleList([image, text]), mixing

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> tuple[Tensor]:
        """Return the mixed features, as diffusers' blocks ask for them.

        Args:
            hidden_states: (B, C, h, w).
            encoder_hidden_states: (B, T, D), the image's tokens first.
            rest: handed on to both.
        """
        n, share = self.mixing.n_image, self.mixing.share
        seen = {N_IMAGE: encoder_hidden_states[:, :n], N_TEXT: encoder_hidden_states[:, n:]}
        wanted = [branch for branch, weight in ((N_IMAGE, 1 - share), (N_TEXT, share)) if weight]
        found = [
            self.transformers[branch](hidden_states, encoder_hidden_states=seen[branch], **rest)[0] for branch in wanted
        ]
        # Both branches carry h along, and the weights sum to one: weighing what is added is weighing the whole.
        return (found[0] if len(found) == 1 else torch.lerp(found[0], found[1], share),)


def dual_unet(config: Mapping[str, Any]) -> Any:
    """Return a UNet2DConditionModel with two transformers in every slot, its weights as diffusers begins them.

    Args:
        config: of the image UNet, as its config.json has it; whether it says that it is dual makes no difference.
            The parameters' names are those of diffusers' own UNets with ``dual_cross_attention``.
    """
    unet: Any = UNet2DConditionModel.from_config({**config, "dual_cross_attention": False})
    unet.mixing = Mixing()
    for name, module in list(unet.named_modules()):
        if isinstance(module, Transformer2DModel):
            slots, _, place = name.rpartition(".")
            unet.get_submodule(slots)[int(place)] = DualTransformer(module, copy.deepcopy(module), unet.mixing)
    return unet


def load_dual_unet(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the UNet of a Versatile Diffusion folder, frozen and in eval mode.

    Args:
        source: with ``image_unet`` and ``text_unet`` as published, or an ``image_unet`` that was saved with both. In a
            folder that shares another one's UNet, what is absent is that UNet's, in both branches.
        device: where it goes.
        dtype: its arithmetic.

    Raises:
        UserError: a branch is absent, damaged, or of another shape.
    """
    folder = branch_folder(source, IMAGE)
    with reading(f"the configuration of {IMAGE}", folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = _tensors(folder)
    if source.shared is not None:
        single = _tensors(source.shared.part("unet"))
        state = joined(single, single) | state
    if not config.get("dual_cross_attention"):
        state = joined(state, _tensors(branch_folder(source, TEXT)))
    with torch.inference_mode(False):  # weights made inside inference mode could never take part in a gradient
        with torch.device("meta"), reading(f"the configuration of {IMAGE}", folder):
            unet = dual_unet(config)
        _check(folder, state, unet)
        unet.load_state_dict({name: value.to(dtype) for name, value in state.items()}, strict=True, assign=True)
        return freeze(unet, device)


def joined(image: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the dual UNet from those of both UNets by name; of the text's, its transformers alone."""
    found = {_dual_name(name, N_IMAGE): value for name, value in image.items()}
    return found | {_dual_name(name, N_TEXT): value for name, value in text.items() if SLOT in name}


def _dual_name(name: str, branch: int) -> str:
    """Return the name that a tensor has in the dual UNet.

    >>> _dual_name("mid_block.attentions.0.norm.bias", N_TEXT)
    'mid_block.attentions.0.transformers.1.norm.bias'
    """
    before, slot, after = name.partition(SLOT)
    if not slot:
        return name
    place, _, inner = after.partition(".")
    return f"{before}{SLOT}{place}.transformers.{branch}.{inner}"


def branch_folder(source: Source, branch: str) -> Path:
    """Return the folder of one of the two UNets, its files in place.

    Raises:
        UserError: it is neither here nor reachable.
    """
    needed = f"Needed: {IMAGE} and {TEXT} as in https://huggingface.co/{HUB_ID} ({SIZE}), or an {IMAGE} saved with both"
    remedy = f"{needed}. Give its folder: {FIELD}=/path/to/folder."
    root = source.folder or fetch(source.text, [f"{branch}/config.json", f"{branch}/{FILES[0]}"], remedy)
    if source.folder is None and not (root / branch / FILES[0]).is_file():
        root = fetch(source.text, [f"{branch}/config.json", f"{branch}/{OLD_FILES[0]}"], remedy)
    folder = root / branch
    if not folder.is_dir():
        what = "image" if branch == IMAGE else "text"
        raise UserError(f"{FIELD}={source.text} lacks its {what} branch: {root} has no folder {branch!r}. {remedy}")
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in (*FILES, *OLD_FILES)):
        raise UserError(f"{FIELD}={source.text}: {folder} holds no config.json with {FILES[0]}. {remedy}")
    return folder


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = next(folder / name for name in (*FILES, *OLD_FILES) if (folder / name).is_file())
    with reading("the weights", folder), torch.inference_mode(False):
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError(f"{path.name} holds something other than tensors by name.")
        return found


def _check(folder: Path, state: Mapping[str, Tensor], unet: nn.Module) -> None:
    """Refuse tensors that are not exactly those of the network."""
    wanted = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        first = f"{wrong[0]} is {found.get(wrong[0], 'absent')}, wanted {wanted.get(wrong[0], 'no such tensor')}"
        raise UserError(
            f"{folder} and its other branch do not make a dual-guided UNet: {len(wrong)} of {len(wanted)} tensors do"
            f" not fit ({first}). Both branches must be of one model, whole and in diffusers' layout."
        )


class VersatileBackbone(Backbone):
    """The VAE, schedule and dual-guided UNet of a Versatile Diffusion folder, with CLIP for its empty conditions."""

    def __init__(self, config: BackboneConfig, versatile: str, clip: Clip, device: str | torch.device = "cpu") -> None:
        """Look at no file yet.

        Args:
            config: the backbone group: its image_size and dtype.
            versatile: hub id or local folder.
            clip: whose tokens the UNet is conditioned on.
            device: where the modules go.
        """
        super().__init__(replace(config, weights=versatile), device)
        self.conditions = clip

    @cached_property
    def source(self) -> Source:
        """Where the folder lies. UserError: there is none."""
        try:
            return find_source(self.config.weights)
        except UserError as error:
            raise UserError(str(error).replace("backbone.weights", FIELD)) from None

    @cached_property
    def unet(self) -> Any:
        """The dual-guided UNet; ``unet.mixing`` holds the share of the text."""
        unet = load_dual_unet(self.source, self.device, self.dtype)
        unet.mixing.n_image, width = self.conditions.vision_shape
        if unet.config["cross_attention_dim"] != width:
            raise UserError(
                f"{FIELD}={self.config.weights} takes conditions of width {unet.config['cross_attention_dim']}, but the"
                f" tokens of target.clip={self.conditions.source} have {width}. Give the CLIP model it was trained with"
                " (openai/clip-vit-large-patch14 for the published one)."
            )
        return unet

    @cached_property
    def empty_conditions(self) -> tuple[Tensor, Tensor]:
        """The tokens of a mid-grey image (1, T, D) and of the empty caption (1, T, D), float32."""
        with torch.inference_mode(False), torch.no_grad():
            hidden = self.conditions.encode_pixels(grey(self.conditions.image_size, self.device))
            image = self.conditions.project_images(hidden)
            text, end = self.conditions.encode_text([""])
            return image / image[:, :1].norm(dim=-1, keepdim=True), text / end.norm(dim=-1)[:, None, None]

    @cached_property
    def _uncond(self) -> Tensor:
        return torch.cat(self.empty_conditions, dim=1)


def grey(size: int, device: torch.device) -> Tensor:
    """Return what CLIP sees of a mid-grey image, (1, 3, size, size) float32.

    Made of exact halves and not by an image processor, which divides floats by 255 once more and makes black of grey.

    >>> [round(float(value), 3) for value in grey(1, torch.device("cpu")).flatten()]
    [0.069, 0.161, 0.333]
    """
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((0.5 - mean) / std).expand(1, 3, size, size)
