"""A tiny untrained instance-conditioned generator for the embedding of an image tower."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from nd.generate.ic_gan.network import Generator, Shape


def tiny_generator(folder: Path, features: int, seed: int = 0) -> Path:
    """Write random weights of a generator of 64 px images from so many instance features; returns the file."""
    torch.manual_seed(seed)
    network = Generator(Shape((8, 8, 8, 8, 4), chunk=3, features=features, shared=4, attention=0))
    path = folder / "generator.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path
