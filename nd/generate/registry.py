"""All generators by name: what each wants and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nd.errors import unknown
from nd.generate import floors, guided_diffusion
from nd.generate.base import Generator
from nd.schema import Config


@dataclass(frozen=True)
class Entry:
    """How to build a generator, and which targets it reads for a configuration."""

    build: Callable[[Config, torch.device], Generator]
    wants: Callable[[Config], list[str]]


def _nothing(cfg: Config) -> list[str]:
    return []


def _latents(cfg: Config) -> list[str]:
    return ["z"]


def _pixels(cfg: Config) -> list[str]:
    return ["pixels"]


def _method_targets(cfg: Config) -> list[str]:
    return list(cfg.method.targets)


GENERATORS: dict[str, Entry] = {
    "guided_diffusion": Entry(guided_diffusion.build, guided_diffusion.wanted_targets),
    "vae": Entry(floors.build_latents, _latents),
    "pixels": Entry(floors.build_pixels, _pixels),
    "mean_image": Entry(floors.build_mean, _nothing),
    "nearest_image": Entry(floors.build_nearest, _method_targets),
    "random_image": Entry(floors.build_random, _nothing),
}


def generator_entry(name: str) -> Entry:
    """Return the entry of a generator. Raises UserError for an unknown name."""
    if name not in GENERATORS:
        raise unknown("method.generator", name, GENERATORS)
    return GENERATORS[name]
