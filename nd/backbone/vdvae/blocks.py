"""The block of which both halves of the network are made.

Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Four convolutions, narrow in the middle, an exact (erf) GELU before each; then, where asked, add and shrink."""

    def __init__(
        self, n_in: int, n_middle: int, n_out: int, *, kernel: int, residual: bool = False, shrink: int = 1
    ) -> None:
        """kernel: side of the two middle convolutions; shrink: side of the squares whose mean is the output."""
        super().__init__()
        self.c1 = nn.Conv2d(n_in, n_middle, 1)
        self.c2 = nn.Conv2d(n_middle, n_middle, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(n_middle, n_middle, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(n_middle, n_out, 1)
        self.residual, self.shrink = residual, shrink

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, n_out, H / shrink, W / shrink)."""
        out_BCHW = x_BCHW
        for convolution in (self.c1, self.c2, self.c3, self.c4):
            out_BCHW = convolution(functional.gelu(out_BCHW))  # the tanh approximation would not be what was trained
        if self.residual:
            out_BCHW = x_BCHW + out_BCHW
        return out_BCHW if self.shrink == 1 else functional.avg_pool2d(out_BCHW, self.shrink)
