"""instance: one vector of length 1 that stands for a whole image, which instance-conditioned GANs are given.

Shapes: B batch, D numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from nd.backbone.loading import Backbone
from nd.backbone.reading import freeze, reading
from nd.backbone.weights import hash_file
from nd.errors import UserError
from nd.files import located
from nd.targets.base import Items, Needs, library
from nd.targets.components import InstanceTarget

SWAV_WIDTH, SWAV_SIDE, SWAV_VIA = 2048, 224, 256
# Mean and deviation of ImageNet's images, RGB in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("projection_head.", "prototypes.", "fc.")  # not part of the features
REMEDY = (
    "Download https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar (110 MB, CC-BY-NC) and give its "
    "path: target.swav=/path/to/swav_800ep_pretrain.pth.tar."
)
RULES = {
    # facebookresearch/ic_gan@8eff2f7:data_utils/make_hdf5.py:233-239 and datasets_common.py:424,662
    "swav": "average pool; bilinear to 256, bicubic without antialias to 224; length 1",
    "tower": "pooled, projected embedding of the image tower; length 1",
}


class InstanceFeatures:
    """SwAV's ResNet-50 (2,048 numbers), as IC-GAN is trained with, or the pooled embedding of the image tower."""

    name = "instance"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone, settings: InstanceTarget) -> None:
        """backbone: gives the device and the image tower; settings: network and swav."""
        self.backbone, self.network, self.file = backbone, settings.network, settings.swav

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (SWAV_WIDTH if self.network == "swav" else int(self.backbone.tower.output_dim),)

    def fingerprint(self) -> dict[str, Any]:
        """Network, weights and preprocessing."""
        found: dict[str, Any] = {"target": "instance", "rule": RULES[self.network]}
        if self.network == "swav":
            return found | {"weights": hash_file(find_swav(self.file)), "library": library("torchvision")}
        config = self.backbone.config
        sides = {"image_size": config.image_size, "tower_size": config.tower_size, "filter": config.tower_filter}
        scale = {"antialias": config.tower_antialias, "mean": list(config.tower_mean), "std": list(config.tower_std)}
        tower = {"tower": self.backbone.hash_of("tower"), "library": library("open_clip_torch")}
        return found | sides | scale | tower

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, D) float32."""
        with torch.inference_mode():
            found = self._swav(items.images) if self.network == "swav" else self._tower(items.images)
            return functional.normalize(found.float(), dim=1).cpu().numpy()

    def _tower(self, images: NDArray[np.uint8]) -> Tensor:
        embedded: Tensor = self.backbone.tower(self.backbone.tower_input(self.backbone.to_float(images)))
        return embedded

    def _swav(self, images: NDArray[np.uint8]) -> Tensor:
        model = self.backbone.shared(("swav", self.file), lambda: load_swav(self.file, self.backbone.device))
        pixels = functional.interpolate(
            self.backbone.to_float(images, SWAV_VIA), (SWAV_SIDE, SWAV_SIDE), mode="bicubic", align_corners=False
        )
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        found: Tensor = model((pixels - mean) / std)
        return found


def find_swav(path: str) -> Path:
    """Return the file with SwAV's weights. UserError: there is none."""
    file = located(path)
    if path and file.is_file():
        return file
    arrived = f"target.swav={path}: no such file." if path else "target.swav is not set."
    raise UserError(f"{arrived} Needed for target instance with target.network=swav. {REMEDY}")


@torch.inference_mode(False)
def load_swav(path: str, device: torch.device) -> nn.Module:
    """Return SwAV's ResNet-50 without its heads, images (B, 3, 224, 224) to (B, 2048); only tensors are unpickled.

    Raises:
        UserError: no file, a damaged one, or weights of another network.
    """
    file = find_swav(path)
    network = resnet50(weights=None)
    network.fc = nn.Identity()
    with reading("SwAV's ResNet-50 (target.swav)", file):
        state = {name.removeprefix("module."): value for name, value in torch.load(file, weights_only=True).items()}
        network.load_state_dict({name: value for name, value in state.items() if not name.startswith(HEADS)})
    found: nn.Module = freeze(network, device)
    return found
