"""torchvision's classifiers and SwAV's ResNet-50, cut at the layers that published protocols read.

Every builder takes a state dict, or None for random weights, and returns a module from normalised images
(B, 3, H, W) to {layer: (B, D)}.
"""

from __future__ import annotations

from torch import nn
from torchvision import models

from nd.metrics.networks.layers import Tapped
from nd.metrics.networks.weights import State

AVGPOOL = {"avgpool": "avgpool"}


def alexnet(state: State | None) -> nn.Module:
    """AlexNet's ReLUs after its second and fifth convolution, before pooling; what comes after is not run."""
    network = _loaded(models.alexnet(weights=None), state)
    return Tapped(network.get_submodule("features")[:12], {"features.4": "4", "features.11": "11"})  # type: ignore[index]


def inception_v3(state: State | None) -> nn.Module:
    """Inception-v3's pooled features (2048).

    ``transform_input``, which torchvision sets with its weights, undoes ImageNet's normalisation for Inception's own.
    """
    network = models.inception_v3(weights=None, init_weights=False, transform_input=True)
    return Tapped(_loaded(network, state), AVGPOOL)


def efficientnet_b1(state: State | None) -> nn.Module:
    """EfficientNet-B1's pooled features (1280)."""
    return Tapped(_loaded(models.efficientnet_b1(weights=None), state), AVGPOOL)


def swav_resnet50(state: State | None) -> nn.Module:
    """SwAV's pooled features (2048): a ResNet-50 without the projection head and the prototypes.

    Source of the names: facebookresearch/swav@main:hubconf.py.
    """
    network = models.resnet50(weights=None)
    network.fc = nn.Identity()
    trunk = None if state is None else {key.removeprefix("module."): value for key, value in state.items()}
    heads = ("projection_head.", "prototypes.", "fc.")
    kept = None if trunk is None else {key: value for key, value in trunk.items() if not key.startswith(heads)}
    return Tapped(_loaded(network, kept), AVGPOOL)


def _loaded(network: nn.Module, state: State | None) -> nn.Module:
    if state is not None:
        network.load_state_dict(state, strict=True)
    return network
