"""Distances that a network learnt between two pictures: LPIPS and DreamSim, from their own packages where installed.

B batch, C H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError
from nd.metrics.images import to_float
from nd.metrics.measures import View
from nd.metrics.network import BATCH, seen_by


def lpips(package: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018), of images in [0, 1]."""
    network = package.LPIPS(net="alex", verbose=False).eval()
    return lambda x_BCHW, y_BCHW: network(x_BCHW * 2 - 1, y_BCHW * 2 - 1)


def dreamsim(package: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """DreamSim's ensemble (Fu et al. 2023), of images in [0, 1]."""
    network, _ = package.dreamsim(pretrained=True, device="cpu")
    return lambda x_BCHW, y_BCHW: network(x_BCHW, y_BCHW)


PAIRS = {"lpips": lpips, "dreamsim": dreamsim}


def pair_distance(pred_NHW3: Any, true_NHW3: NDArray[Any], view: View) -> Tensor:
    """Distance (N,) float64 of matching images, uint8 or floats in [0, 1]; best 0.

    Raises:
        UserError: the package is not installed, or its weights are neither here nor reachable.
    """
    distance, found = _distance(view.network), []
    with torch.inference_mode():
        for start in range(0, len(pred_NHW3), BATCH):
            batch = slice(start, start + BATCH)
            pair = (seen_by(to_float(np.asarray(images[batch])), view) for images in (pred_NHW3, true_NHW3))
            found.append(distance(*pair).flatten().double())
    return torch.cat(found).clone()


def _distance(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        return PAIRS[name](import_module(name))
    except ImportError:
        raise UserError(
            f"measure {name} needs the package {name}, which is not installed: pip install {name}. Or leave it out of "
            "protocol.measures."
        ) from None
    except Exception as error:  # each package raises its own, OS and network errors
        raise UserError(
            f"measure {name}: its weights cannot be loaded ({error}). Fetch them with a network."
        ) from error
