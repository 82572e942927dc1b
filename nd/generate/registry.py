"""All generators by name: what each wants and how it is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import Config
from nd.errors import unknown
from nd.generate import floors, guided_diffusion
from nd.generate.base import Generator, Reconstructions

Single = Callable[[Sequence[int], Mapping[str, Tensor]], NDArray[np.uint8]]  # to (B, R, H, W, 3) uint8


@dataclass(frozen=True)
class Entry:
    """How to build a generator, and which targets it reads for a configuration."""

    build: Callable[[Sequence[Config], torch.device], Generator]  # for runs that are made together
    wants: Callable[[Config], list[str]]


def _nothing(cfg: Config) -> list[str]:
    return []


def _latents(cfg: Config) -> list[str]:
    return ["z"]


def _pixels(cfg: Config) -> list[str]:
    return ["pixels"]


def _method_targets(cfg: Config) -> list[str]:
    return list(cfg.method.targets)


class Alone:
    """A generator that makes the images of one run."""

    def __init__(self, single: Single) -> None:
        self.single = single

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of that run."""
        return [Reconstructions(self.single(image_ids, features))]


def alone(build: Callable[[Config, torch.device], Single], cfgs: Sequence[Config], device: torch.device) -> Alone:
    """Build a generator of one run."""
    (cfg,) = cfgs
    return Alone(build(cfg, device))


GENERATORS: dict[str, Entry] = {
    "guided_diffusion": Entry(guided_diffusion.build, guided_diffusion.wanted_targets),
    "vae": Entry(functools.partial(alone, floors.build_latents), _latents),
    "pixels": Entry(functools.partial(alone, floors.build_pixels), _pixels),
    "mean_image": Entry(functools.partial(alone, floors.build_mean), _nothing),
    "nearest_image": Entry(functools.partial(alone, floors.build_nearest), _method_targets),
    "random_image": Entry(functools.partial(alone, floors.build_random), _nothing),
}


def generator_entry(name: str) -> Entry:
    """Return the entry of a generator. Raises UserError for an unknown name."""
    if name not in GENERATORS:
        raise unknown("method.generator", name, GENERATORS)
    return GENERATORS[name]
