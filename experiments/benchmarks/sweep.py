"""Time a grid over kappa and eta sampled together against its points one by one, and compare the images.

    python experiments/benchmarks/sweep.py                  the Scenes backbone, 16 images x 2 repeats, 24 points
    python experiments/benchmarks/sweep.py --images 4 --out sweep.json method.repeats=1

Found on 2 CPU cores: together 67 s, one by one 148 s, .45 of the time, images equal to the last bit.

Both go through the sampler in one process, on the same inputs: random latents, conditions and features, for neither
time nor equality hang on what they are. The networks are loaded before, so that one by one pays no start 24 times; run
as 24 commands the gain is larger. Needs no data.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rows import Asked, Row, in_turns
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.tower import BlockFeatures
from nd.config import Config
from nd.config.application import compose
from nd.generate.sampler import GuidedSampler, point_of
from nd.generate.trajectories import noise_for
from nd.machine import pick_device

KAPPAS = (0.03, 0.1, 0.3, 1.0)  # scale-free; they span as much as 3e3 .. 3e6 of the published kappa
ETAS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    """Measure and print."""
    options, overrides = parsed()
    cfg = compose(["experiment=scenes", *overrides])
    backbone = load_backbone(cfg.backbone, pick_device(cfg.trainer.accelerator))
    grid = [at(cfg, kappa, eta) for kappa in KAPPAS for eta in ETAS]
    given = inputs(backbone, cfg, options.images)
    GuidedSampler(backbone, grid[0]).sample(*(x[:1] for x in given))  # warm
    begun = time.perf_counter()
    together = GuidedSampler(backbone, cfg, [point_of(one) for one in grid]).sample(*given)
    shared = time.perf_counter() - begun
    begun, largest = time.perf_counter(), 0.0
    for one, found in zip(grid, together, strict=True):
        (alone,) = GuidedSampler(backbone, one).sample(*given)
        largest = max(largest, float((alone.images - found.images).abs().max()))
    single = time.perf_counter() - begun
    record = {
        "points": len(grid),
        "images": options.images,
        "repeats": cfg.method.repeats,
        "through_unet": cfg.guidance.through_unet,
        "sag_scale": cfg.method.sag_scale,
        "threads": torch.get_num_threads(),
        "seconds_together": round(shared, 2),
        "seconds_one_by_one": round(single, 2),
        "ratio": round(shared / single, 3),
        "largest_difference": largest,
    }
    print(json.dumps(record, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(asked: Asked) -> list[Row]:
    """Return the row of the grid sampled together against one by one."""
    cfg = compose(["experiment=scenes", "method.repeats=1", *(["method.steps=6"] if asked.quick else [])])
    backbone = load_backbone(cfg.backbone, asked.device)
    kappas, etas = (KAPPAS[:1], ETAS[:2]) if asked.quick else (KAPPAS, ETAS)
    grid = [at(cfg, kappa, eta) for kappa in kappas for eta in etas]
    n = 1
    given = inputs(backbone, cfg, n)

    def together() -> None:
        GuidedSampler(backbone, cfg, [point_of(one) for one in grid]).sample(*given)

    def one_by_one() -> None:
        for one in grid:
            GuidedSampler(backbone, one).sample(*given)

    mine, theirs = in_turns(asked.pick(1, 3), asked.seconds, together, one_by_one, warm=False)
    case = f"{len(grid)} points of kappa and eta, {n} image, Scenes models"
    return [Row(case=case, unit="s", ours=mine, peer="one by one", theirs=theirs, clock=asked.clock)]


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """Options of the benchmark; what follows are overrides as for `nd reconstruct`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--out", default="")
    return parser.parse_known_args()


def at(cfg: Config, kappa: float, eta: float) -> Config:
    """The configuration at another point of guidance."""
    return replace(cfg, guidance=replace(cfg.guidance, kappa=kappa, eta=eta))


def inputs(backbone: Backbone, cfg: Config, n: int) -> tuple[Any, ...]:
    """Random latents, conditions, features and the noise of some images."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=random).to(backbone.device)

    g = normal(*BlockFeatures(backbone.tower, list(cfg.decoding("g").target.layers)).shape)
    noise = noise_for(cfg.seed, range(n), cfg.method.repeats, backbone.latent_shape).to(backbone.device)
    return normal(*backbone.latent_shape), normal(*backbone.text_shape), 0.5 * g, noise


if __name__ == "__main__":
    main()
