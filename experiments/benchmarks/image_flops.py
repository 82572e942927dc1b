"""What an image of every method takes in operations, at the settings of Scenes: counted while one is made.

    command   make bench ARGS="--only image_flops"
    time      half a minute on one CPU core

Operations are floating-point ones of matrix products and convolutions, a product and its sum being two; those of a
sample of one image, so that repeats multiply them. MindDiffuser's second stage is counted for all its iterations, of
which an image may do fewer. Inputs are random: only sizes matter here.
"""

from __future__ import annotations

from typing import Any

import torch
from image_to_image import shapes_of
from rows import COUNTED, Asked, Row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nd.backbone.tower import BlockFeatures
from nd.config import Config
from nd.config.application import compose
from nd.config.components import component
from nd.generate.components import guiding_layers

METHODS = ("neuraldiffuser_scenes", "minddiffuser", "brain_diffuser", "takagi", "ic_gan_scenes")
COUNTED_ITERATIONS = (1, 2)  # of a second stage: a straight line goes through them


class Operations(TorchDispatchMode):
    """Counts as PyTorch's own counter does, which cannot look on while gradients of leaves are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._overloadpacket not in flop_registry:
            with self:  # without a graph, layers arrive whole
                parts = function.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = function(*args, **(kwargs or {}))
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def measure(asked: Asked) -> list[Row]:
    """Count an image of every method."""
    return [
        Row(case=f"{method}, an image of Scenes", unit="GFLOP", ours=[gflop_of(method)], clock=COUNTED)
        for method in asked.pick(METHODS[-1:], METHODS)
    ]


def gflop_of(method: str) -> float:
    """Return the operations of one sample of one image, in 1e9."""
    cfg = composed(method)
    if not getattr(cfg.method, "moved", ()):
        return counted(cfg)
    one, two = (counted(composed(method, f"method.iterations={n}", "method.patience=0")) for n in COUNTED_ITERATIONS)
    return one + (cfg.method.iterations - 1) * (two - one)


def composed(method: str, *more: str) -> Config:
    """Return a method's configuration on Scenes, one sample an image."""
    return compose(["experiment=scenes", "table=", f"method={method}", "method.repeats=1", *more])


def counted(cfg: Config) -> float:
    """Return the operations while an image is made, in 1e9."""
    generator = component("generator", cfg.method.generator).build([cfg], torch.device("cpu"))
    features = {name: torch.randn(1, *shape) for name, shape in sizes_of(cfg, generator).items()}
    if hasattr(generator, "plan_for"):
        generator.use(generator.plan_for([1]))
    with sdpa_kernel(SDPBackend.MATH), Operations() as found:  # as plain products, which are counted
        generator([0], features)
    return found.total / 1e9


def sizes_of(cfg: Config, generator: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a method decodes."""
    if hasattr(generator, "first"):
        return shapes_of(cfg, generator.first)
    if not hasattr(generator, "sampler"):
        return {"instance": (generator.network.shape.features,)}
    sampler = generator.sampler
    blocks = BlockFeatures(sampler.backbone.tower, guiding_layers(cfg))
    text = tuple(sampler.denoise.uncond_1TD.shape[1:])
    return {"z": sampler.backbone.latent_shape, "c": text, "g": blocks.shape}
