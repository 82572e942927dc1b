"""Images through a judging network: features by layer, those of the stimuli kept on disk; and learnt distances.

One pass gives all the layers that measures of one view read. Features of the stimuli are kept between evaluations, one
file per view with a dataset per layer, so that a second method under one protocol does not compute them again: for
1,000 images AlexNet's take about 1 GB at 256 px, those of the other networks at most 8 MB each.

B batch, N images, C H W image, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nd.errors import UserError
from nd.files import atomic_path, sha256_array, sha256_json
from nd.h5_values import attribute, read_whole
from nd.hdf5 import open_h5
from nd.metrics.images import resize, to_float
from nd.metrics.measures import Measure, View
from nd.metrics.networks import network_named
from nd.sealed import seal

log = logging.getLogger(__name__)
BATCH = 16  # images per forward pass: activations that stay in the processor's cache are the faster ones
RANDOM = ":random:"  # in place of a weights folder: random weights, for tests and benchmarks
CPU = torch.device("cpu")
Features = dict[str, Tensor]


@lru_cache(maxsize=1)  # one network at a time: CLIP's ViT-L/14 alone is 1.2 GB
def loaded(name: str, folder: str, device: torch.device = CPU) -> nn.Module:
    """The network, frozen, in inference mode; with random weights (the same each time) where ``folder`` is RANDOM."""
    network = network_named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network.build(None if folder == RANDOM else network.state(folder))
    return module.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def seen_by(images_BCHW: Tensor, view: View) -> Tensor:
    """Images in [0, 1] at the size in which the view's network sees them, (B, 3, S, S)."""
    for side in (view.via, view.size):
        if side:
            images_BCHW = resize(images_BCHW, side, view.filter, view.antialias, view.arithmetic)
    return images_BCHW


def features(
    images_BHW3: Any, view: View, folder: str = "", device: torch.device = CPU, layers: Collection[str] = ()
) -> Features:
    """Features {layer: (B, D) float32, on the CPU} of RGB images, uint8 or floats in [0, 1]; one pass for all layers.

    Args:
        images_BHW3: checked images (``nd.metrics.images.check_images``), an array or what is sliced like one; read
            and turned into floats batch by batch.
        view: which network, and how it sees them.
        folder: ``protocol.weights``, or ``RANDOM``.
        device: where the network runs, in float32 without shortcuts (TF32), so that scores do not depend on it.
        layers: those kept, by default all that measures read.

    Raises:
        UserError: weights that are absent or others than the published ones.
    """
    network, normalise = loaded(view.network, folder, device), network_named(view.network).normalise
    kept: Features = {}
    for start in range(0, len(images_BHW3), BATCH):
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            batch = seen_by(to_float(np.asarray(images_BHW3[start : start + BATCH])), view)
            outputs = network(normalise(batch.to(device)).contiguous(memory_format=torch.channels_last))
        for layer, values in outputs.items():
            if layers and layer not in layers:
                continue
            if layer not in kept:  # allocated whole at once: collecting parts would need twice the memory
                kept[layer] = torch.empty(len(images_BHW3), values.shape[1])
            kept[layer][start : start + len(values)] = values
    return kept


# ---- features of the stimuli, kept


def features_path(folder: Path, stimuli_NHW3: NDArray[Any], view: View, weights: str = "") -> Path:
    """Where these stimuli's features lie: named by the content of the images and by what the network does to them."""
    found = digits_of(view.network, weights)
    return folder / f"{view.network}-{sha256_json([sha256_array(stimuli_NHW3), asdict(view), found])}.h5"


def digits_of(network: str, weights: str) -> str:
    """What tells a network's weights from others: the first digits of their SHA-256, or that they are random."""
    return RANDOM if weights == RANDOM else network_named(network).found(weights)


def stimulus_features(
    stimuli_NHW3: NDArray[Any],
    view: View,
    layers: Iterable[str],
    weights: str = "",
    folder: Path | None = None,
    device: torch.device = CPU,
) -> Features:
    """Return features of the stimuli by layer, read from ``folder`` or computed and written there.

    Args:
        stimuli_NHW3: checked images.
        view: which network, and how it sees them.
        layers: those wanted.
        weights: ``protocol.weights``, or ``RANDOM``.
        folder: None: they are computed and forgotten.
        device: where the network runs.
    """
    if folder is None:
        return features(stimuli_NHW3, view, weights, device)
    path = features_path(folder, stimuli_NHW3, view, weights)
    return cached(path, layers, lambda: features(stimuli_NHW3, view, weights, device))


def cached(path: Path, layers: Iterable[str], compute: Callable[[], Features]) -> Features:
    """Read features from a file, or compute and write them; a damaged file is computed again."""
    if path.exists():
        try:
            with open_h5(path) as handle:
                if attribute(handle, "of", str, path.stem) != path.stem:
                    raise UserError(f"{path} holds features under the name of others.")
                return {layer: torch.from_numpy(read_whole(handle, layer, "f", (None, None))) for layer in layers}
        except UserError as error:
            log.warning("%s The features of the stimuli are computed again", error)
    computed = compute()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        for layer, values in computed.items():
            handle.create_dataset(layer, data=values.numpy())
        handle.attrs["of"] = path.stem  # what they are features of, and how
        seal(handle, "Remove it.")
    return computed


# ---- distances that a network learnt between two images, from their own packages where installed


def lpips(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018), of images in [0, 1]."""
    network = _packaged("lpips", lambda package: package.LPIPS(net="alex", verbose=False).eval())
    return torch.as_tensor(network(x_BCHW * 2 - 1, y_BCHW * 2 - 1))


def dreamsim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """DreamSim's ensemble (Fu et al. 2023), of images in [0, 1]."""
    network = _packaged("dreamsim", lambda package: package.dreamsim(pretrained=True, device="cpu")[0])
    return torch.as_tensor(network(x_BCHW, y_BCHW))


def pair_scores(pred_NHW3: Any, true_NHW3: NDArray[Any], measure: Measure) -> Tensor:
    """Score matching images by a measure that compares them itself, at the size of its view.

    Args:
        pred_NHW3: reconstructions, uint8 or floats in [0, 1], an array or what is sliced like one.
        true_NHW3: stimuli in the same order.
        measure: of kind ``pair``.

    Returns:
        (N,) float64.

    Raises:
        UserError: its package is not installed, or its weights are neither here nor reachable.
    """
    score, found = measure.function, []
    with torch.inference_mode():
        for start in range(0, len(pred_NHW3), BATCH):
            batch = slice(start, start + BATCH)
            pair = (seen_by(to_float(np.asarray(images[batch])), measure.view) for images in (pred_NHW3, true_NHW3))
            found.append(score(*pair).flatten().double())
    return torch.cat(found).clone()


def _packaged(name: str, build: Callable[[Any], Any]) -> Any:
    """What ``build`` makes of a package, made once. UserError: the package or its weights are not there."""
    if name not in _BUILT:
        try:
            _BUILT[name] = build(import_module(name))
        except ImportError:
            raise UserError(
                f"measure {name} needs the package {name}, which is not installed: pip install {name}. Or leave it out "
                "of protocol.measures."
            ) from None
        except Exception as error:  # each package raises its own, OS and network errors
            raise UserError(
                f"measure {name}: its weights cannot be loaded ({error}). Fetch them with a network."
            ) from error
    return _BUILT[name]


_BUILT: dict[str, Any] = {}
