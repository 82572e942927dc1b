"""All judging networks by name: how they are built, how they want their images, where their weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from nd.backbone.clip_pictures import MEAN as CLIP_MEAN
from nd.backbone.clip_pictures import STD as CLIP_STD
from nd.errors import unknown
from nd.metrics.networks import clip_image, imagenet, lite
from nd.metrics.networks.weights import State, Weights

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
        return lite.read_state() if self.weights is None else self.weights.read(folder)

    @property
    def pinned(self) -> str:
        """Known digits of the weights' SHA-256; empty where no publisher states one."""
        return lite.WEIGHTS_SHA256[:12] if self.weights is None else self.weights.sha256

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
    name: str, title: str, build: Callable[[State | None], nn.Module], hub_id: str, file: str, size: int, known: str
) -> Network:
    title = f"OpenAI's CLIP {title}"
    weights = Weights(name, title, file, f"{HUB}{hub_id} (licence MIT)", size, hub_id=hub_id, known=known)
    return Network(build, scaled(CLIP_MEAN, CLIP_STD), weights)


# Of revisions 32bd642 and a6f597a on the hub; some ten public manifests agree on each. None was found of SwAV's file.
CLIP_L14 = "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
CLIP_B32 = "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"
SWAV_FILE = "swav_800ep_pretrain.pth.tar"
SWAV = Weights(
    "swav_resnet50", "SwAV's ResNet-50", SWAV_FILE, f"https://dl.fbaipublicfiles.com/deepcluster/{SWAV_FILE}", 110
)

NETWORKS = {
    "efficientnet_lite0": Network(lite.efficientnet_lite0, lite.normalise, None),
    "alexnet": _torchvision("alexnet", "AlexNet", imagenet.alexnet, "alexnet-owt-7be5be79.pth", 244),
    "inception_v3": _torchvision(
        "inception_v3", "Inception-v3", imagenet.inception_v3, "inception_v3_google-0cc3c7bd.pth", 109
    ),
    "efficientnet_b1_v1": _torchvision(
        "efficientnet_b1_v1", "EfficientNet-B1 (V1)", imagenet.efficientnet_b1,
        "efficientnet_b1_rwightman-bac287d4.pth", 32,
    ),
    "efficientnet_b1_v2": _torchvision(
        "efficientnet_b1_v2", "EfficientNet-B1 (V2)", imagenet.efficientnet_b1, "efficientnet_b1-c27df63c.pth", 32
    ),
    "swav_resnet50": Network(imagenet.swav_resnet50, scaled(IMAGENET_MEAN, IMAGENET_STD), SWAV),
    "clip_vit_l14": _clip(
        "clip_vit_l14", "ViT-L/14", clip_image.clip_vit_l14, "openai/clip-vit-large-patch14", "model.safetensors", 1711,
        CLIP_L14,
    ),
    "clip_vit_b32": _clip(
        "clip_vit_b32", "ViT-B/32", clip_image.clip_vit_b32, "timm/vit_base_patch32_clip_224.openai",
        "open_clip_model.safetensors", 605, CLIP_B32,
    ),
}  # fmt: skip


def network_named(name: str) -> Network:
    """The network of that name; UserError lists those there are."""
    if name not in NETWORKS:
        raise unknown("network of a measure", name, NETWORKS)
    return NETWORKS[name]
