"""What every target offers: the shape of its features, what they depend on, and how they are computed.

Shapes: B batch.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Needs = Literal["images", "captions"]


class Extractor(Protocol):
    """Pictures or captions to the features of one target."""

    name: str
    needs: Needs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one picture."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything the values depend on, except the stimuli: settings, hashes of weights, versions."""

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        """Features (B, *shape) float32.

        Args:
            batch: uint8 pictures (B, H, W, 3), or a list of B lists of captions, as `needs` says.
        """


def library(name: str) -> str:
    """'<name> <release series>': the part of a library's version that may change features noticeably.

    Patch and minor releases move them by rounding at most; hashing those would discard every store at each update.
    """
    major, minor, *_ = version(name).split(".")
    return f"{name} {major}.{minor}" if major == "0" else f"{name} {major}"
