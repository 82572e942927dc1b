"""What every target offers: the shape of its features, what they depend on, and how they are computed.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nd.data.prepared import Stimuli

Needs = Literal["images", "captions"]
T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """A batch of stimuli as extractors see it: ids, and the images or captions that were asked for.

    Targets of one batch share what they have in common: ``once`` runs a forward pass for the first of them and hands
    its result to the others.

    Attributes:
        ids: (B,) image ids, what random draws depend on.
        images: uint8 images (B, H, W, 3); empty where no target needs them.
        captions: B lists of captions; empty where no target needs them.
    """

    ids: NDArray[np.int32]
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    captions: list[list[str]] = field(default_factory=list)
    _results: dict[int, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, stimuli: Stimuli, ids: NDArray[Any], needs: set[Needs]) -> Items:
        """The stimuli of some images, in the order of ``ids``."""
        ids = np.asarray(ids, np.int32)
        if "images" in needs and "captions" in needs:
            return cls(ids, stimuli.images(ids), stimuli.captions(ids))
        if "captions" in needs:
            return cls(ids, captions=stimuli.captions(ids))
        return cls(ids, stimuli.images(ids))

    def once(self, forward: Callable[[Items], T]) -> T:
        """The result of a forward pass over this batch, computed when it is first asked for.

        ``forward`` is an object that the targets share and keep; two objects are two passes, whatever they compute.
        They get it from `Backbone.shared` (see `nd.targets.clip_features.vision_pass`). A bound method would not do:
        Python makes a new one each time it is looked up.
        """
        if id(forward) not in self._results:
            self._results[id(forward)] = forward(self)
        result: T = self._results[id(forward)]
        return result


class Extractor(Protocol):
    """Images or captions to the features of one target."""

    name: str
    needs: Needs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one image."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything the values depend on, except the stimuli: settings, hashes of weights, versions. Loads nothing."""

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Features (B, *shape) float32."""


def library(name: str) -> str:
    """'<name> <release series>': the part of a library's version that may change features noticeably.

    Patch and minor releases move them by rounding at most; hashing those would discard every store at each update.
    """
    major, minor, *_ = version(name).split(".")
    return f"{name} {major}.{minor}" if major == "0" else f"{name} {major}"
