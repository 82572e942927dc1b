"""The judging networks, cut at the layers that published protocols read: torchvision's, SwAV's and OpenAI's CLIP.

Every builder takes a state dict, or None for random weights, and returns a module from normalised images
(B, 3, H, W) to {layer: (B, D)}.

B batch, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision import models

State = dict[str, Tensor]
Layers = dict[str, Tensor]
AVGPOOL = {"avgpool": "avgpool"}


class Tapped(nn.Module):
    """Runs a network and returns the outputs of some of its modules as {name: (B, D)}."""

    def __init__(self, network: nn.Module, nodes: dict[str, str]) -> None:
        """nodes: name of the layer to the module's path inside ``network``."""
        super().__init__()
        self.network = network
        self._seen: Layers = {}
        for name, path in nodes.items():
            network.get_submodule(path).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output.flatten(1)

        return hook

    def forward(self, x_BCHW: Tensor) -> Layers:
        """(B, 3, H, W) normalised images to features by layer."""
        self.network(x_BCHW)
        seen, self._seen = self._seen, {}
        return seen


class Embedding(nn.Module):
    """Returns a network's last output as the layer ``embedding``."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], Tensor] = lambda output: output) -> None:
        """pick: takes the tensor (B, D) out of what the network returns."""
        super().__init__()
        self.network, self.pick = network, pick

    def forward(self, x_BCHW: Tensor) -> Layers:
        """(B, 3, H, W) normalised images to {"embedding": (B, D)}."""
        return {"embedding": self.pick(self.network(x_BCHW)).flatten(1)}


# ---- torchvision and SwAV


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


# ---- CLIP: un-normalised projected embeddings of the image half; the text half is not read


@dataclass(frozen=True)
class VisionShape:
    """A vision transformer of CLIP: widths, depth, patch side, embedding, and open_clip's name of the whole model."""

    width: int
    layers: int
    heads: int
    patch: int
    embedding: int
    open_clip: str


L14 = VisionShape(1024, 24, 16, 14, 768, "ViT-L-14-quickgelu")
B32 = VisionShape(768, 12, 12, 32, 512, "ViT-B-32-quickgelu")
OPEN_CLIP_KEY = "visual.conv1.weight"  # a file in open_clip's layout holds it


def clip_image(shape: VisionShape, state: State | None) -> nn.Module:
    """A module from normalised images (B, 3, 224, 224) to {"embedding": (B, D)}; state: of the whole model or half.

    OpenAI's weights want QuickGELU: exact GELU runs silently and changes every number.
    """
    if state is not None and OPEN_CLIP_KEY in state:
        import open_clip

        visual = open_clip.create_model(shape.open_clip, pretrained=None).visual
        visual.load_state_dict(_under(state, "visual."), strict=True)
        return Embedding(visual)
    network = _transformers(shape)
    if state is not None:
        ours = {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}
        # Older files also hold the numbers of the positions, which are no weights.
        network.load_state_dict({k: v for k, v in ours.items() if not k.endswith(".position_ids")}, strict=True)
    return Embedding(network, lambda output: output.image_embeds)


def _transformers(shape: VisionShape) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=shape.width, intermediate_size=4 * shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, patch_size=shape.patch, projection_dim=shape.embedding, image_size=224,
        hidden_act="quick_gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def _under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
