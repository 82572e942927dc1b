"""A CLIP model in transformers' layout: where its files lie, and its two encoders, each read when first used.

The checkpoint holds both encoders; either is read without the other.
Shapes: B batch, H W rows and columns, T tokens, W width of a transformer, D width of the space that both share.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.clip_pictures import to_pixels
from nd.backbone.reading import freeze, quiet, read_module, reading
from nd.backbone.tower_clip import TOKENIZER, backbone_hash, clip_of_tower, config_of_tower, is_backbone
from nd.backbone.weights import OTHER_FILES, fetch, has_vocabulary, hash_file, shipped_folder
from nd.errors import UserError
from nd.files import PACKAGE, located, sha256_json

FIELD = "target.clip"
CONFIG_FILE, WEIGHT_FILE, TOKENIZER_FILES = "config.json", "model.safetensors", OTHER_FILES["tokenizer"]

# Size of model.safetensors as listed on the hub.
SIZES = {"openai/clip-vit-large-patch14": "1.7 GB, licence MIT"}


class Clip:
    """The image and the text encoder of a transformers CLIPModel, frozen and in eval mode; nothing is read at first."""

    def __init__(
        self, source: str, device: torch.device, dtype: torch.dtype = torch.float32, field: str = FIELD
    ) -> None:
        """Look at no file yet.

        Args:
            source: a hub id (with '@<revision>' a certain one), local folder, or 'package://<name>'; a
                folder is that of a CLIP model, or a backbone's, whose image tower is then read as one.
            device: where the encoders go.
            dtype: of arithmetic.
            field: the setting that names it, for messages.
        """
        self.source, self.device, self.dtype, self.field = source, device, dtype, field

    # ---- files ---------------------------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """Where the files lie, fetched first where need be. UserError: no such folder, or files are absent."""
        folder = shipped_folder(self.source, self.field) if self.source.startswith(PACKAGE) else located(self.source)
        if is_backbone(folder):
            return folder
        if not folder.is_dir():
            if self.source.count("/") != 1 or self.source.startswith((".", "/", "~")):
                raise UserError(f"{self.field}={self.source}: no such folder. {self._remedy}")
            folder = fetch(self.source, [CONFIG_FILE, WEIGHT_FILE, *TOKENIZER_FILES], self._remedy)
        for name in (CONFIG_FILE, WEIGHT_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{self.field}={self.source}: {folder} holds no {name}. {self._remedy}")
        return folder

    @property
    def _remedy(self) -> str:
        hub_id = self.source if self.source in SIZES else next(iter(SIZES))
        return (
            f"Needed: a whole CLIP model as transformers keeps it ({CONFIG_FILE}, {WEIGHT_FILE}, and tokenizer.json or "
            f"vocab.json and merges.txt; only safetensors are read), e.g. https://huggingface.co/{hub_id} "
            f"({SIZES[hub_id]}). With a network it is fetched by itself; otherwise download it elsewhere and give its "
            f"folder: {self.field}=/path/to/folder."
        )

    @property
    def weights_hash(self) -> str:
        """12 hexadecimal digits of weights and configuration; loads neither."""
        if is_backbone(self.folder):
            return backbone_hash(self.folder)
        return sha256_json([hash_file(self.folder / name) for name in (CONFIG_FILE, WEIGHT_FILE)])

    @property
    def tokenizer_hash(self) -> str:
        """12 hexadecimal digits of the tokenizer's files."""
        folder = self._tokenizer_folder
        there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
        return sha256_json({name: hash_file(folder / name) for name in there})

    @property
    def _tokenizer_folder(self) -> Path:
        return self.folder / TOKENIZER if is_backbone(self.folder) else self.folder

    # ---- modules -------------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Any:
        """A transformers CLIPConfig. UserError where the folder holds another model, or one of the halves alone."""
        config = config_of_tower(self.folder) if is_backbone(self.folder) else self._read_config()
        # The whole model has one width; its halves, read alone, would go by their own entries, which often are default.
        config.vision_config.projection_dim = config.text_config.projection_dim = config.projection_dim
        return config

    def _read_config(self) -> Any:
        from transformers import CLIPConfig

        path = self.folder / CONFIG_FILE
        with reading("the CLIP model's configuration", self.folder):
            kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
            config = CLIPConfig.from_pretrained(self.folder, local_files_only=True) if kind == "clip" else None
        if config is None:
            raise UserError(f"{self.field}={self.source}: {path} describes a model of type {kind!r}. {self._remedy}")
        return config

    @cached_property
    def vision(self) -> Any:
        """A transformers CLIPVisionModelWithProjection."""
        from transformers import CLIPVisionModelWithProjection

        return self._half(CLIPVisionModelWithProjection, "image encoder", self.config.vision_config)

    @cached_property
    def text(self) -> Any:
        """A transformers CLIPTextModelWithProjection."""
        from transformers import CLIPTextModelWithProjection

        return self._half(CLIPTextModelWithProjection, "text encoder", self.config.text_config)

    @cached_property
    def _of_tower(self) -> Any:
        """The CLIP model of a backbone's image tower."""
        return freeze(clip_of_tower(self.folder).to(self.dtype), self.device)

    def _half(self, kind: Any, name: str, config: Any) -> Any:
        if is_backbone(self.folder):
            with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
                half, whole = kind(config).to(self.dtype), self._of_tower.state_dict()
                half.load_state_dict({name: whole[name] for name in half.state_dict()})
                return freeze(half, self.device)
        with quiet():  # to either half, the other is a list of unexpected weights
            return read_module(
                kind, f"the CLIP model's {name}", self.folder, self.device, config=config, dtype=self.dtype
            )

    @cached_property
    def tokenizer(self) -> Any:
        """A transformers CLIPTokenizer."""
        from transformers import CLIPTokenizer

        folder = self._tokenizer_folder
        if not has_vocabulary(folder):
            raise UserError(f"{self.field}={self.source}: {folder} holds no tokenizer. {self._remedy}")
        with reading("the CLIP model's tokenizer", folder):
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        """Side of the images that the image encoder sees, pixels."""
        return int(self.config.vision_config.image_size)

    @property
    def vision_shape(self) -> tuple[int, int]:
        """(T, D) of the projected tokens of an image: the class token, then the patches row-major."""
        patches = self.image_size // int(self.config.vision_config.patch_size)
        return patches**2 + 1, int(self.config.projection_dim)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(T, D) of the projected tokens of a caption."""
        return int(self.config.text_config.max_position_embeddings), int(self.config.projection_dim)

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Last hidden states (B, T, W) of the image encoder, before its final norm. images: uint8 (B, H, W, 3)."""
        return self.encode_pixels(to_pixels(images, self.image_size, self.device))

    def encode_pixels(self, pixels_B3SS: Tensor) -> Tensor:
        """The same of images that are normalised already, floats (B, 3, S, S)."""
        return self.vision.vision_model(pixel_values=pixels_B3SS.to(self.dtype)).last_hidden_state

    def project_images(self, hidden: Tensor) -> Tensor:
        """Final norm and projection of the image encoder's hidden states (..., W): (..., D) float32."""
        return self.vision.visual_projection(self.vision.vision_model.post_layernorm(hidden)).float()

    def encode_text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Projected tokens (B, T, D) float32 of captions, after the final norm, and of each its end token (B, D)."""
        length, _ = self.text_shape
        coded = self.tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids_BT = coded["input_ids"].to(self.device)
        tokens_BTD = self.text.text_projection(self.text.text_model(input_ids=ids_BT).last_hidden_state).float()
        # The first end token: captions are padded with more of them.
        ends_B = (ids_BT == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return tokens_BTD, tokens_BTD[torch.arange(len(ends_B), device=self.device), ends_B]
