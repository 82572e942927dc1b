"""Tune feature guidance on validation images: a grid over kappa and eta, for predicted and for true features.

    python experiments/scenes-guidance/tune.py experiment=scenes
    python experiments/scenes-guidance/tune.py --images 40 --kappas 0.1,0.3 --etas 0.2,0.4 experiment=scenes

Runs what is missing before it (prepare .. predict, mappers fitted on training images alone), samples the grid
points, and writes tuning.json beside itself: scores with 95% intervals over images, the paired gain over
no guidance, and the chosen point. Test images take no part. Everything after the options are overrides as for
`nd run`.

Chosen: the highest sum of PixCorr and low-level identification with predicted features. PixCorr alone is flat over a
wide range of kappa and eta, and identification tells images apart that share a background.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import Stimuli, stimuli_path
from nd.extract import extract
from nd.files import sha256_json, write_json
from nd.generate.guided_diffusion import GuidedDiffusion
from nd.generate.inputs import FeatureSource, PredictedFeatures, TrueFeatures, part_ids
from nd.generate.parts import partition
from nd.generate.sampler import GuidedSampler, point_of
from nd.machine import pick_device
from nd.metrics.intervals import bootstrap_interval, paired_difference
from nd.metrics.score import score_images
from nd.predict import predict
from nd.prepare import prepare
from nd.runs.folder import RunFolder
from nd.targets.store import store_path
from nd.train import train

log = logging.getLogger(__name__)

TARGETS = ("z", "c", "g")
SCORES = ("pixcorr", "ssim", "two_way_pixels", "two_way_low", "two_way_mid", "two_way_high", "consistency_pixcorr")


def main() -> None:
    """Tune and write the record."""
    options, overrides = arguments()
    cfg = compose([*overrides, "part=val", "mapper.refit=false", f"method.repeats={options.repeats}"])
    started = time.monotonic()
    predicted = predictions(cfg)
    true = TrueFeatures({name: store_path(cfg, name) for name in TARGETS})
    ids = evenly(part_ids(cfg), options.images)
    backbone = load_backbone(cfg.backbone, pick_device(cfg.trainer.accelerator))
    grid = [(0.0, 0.0)] + [(kappa, eta) for eta in options.etas for kappa in options.kappas if kappa > 0]
    score = scorer(cfg, ids)
    points = tune(cfg, backbone, predicted, ids, grid, score, "predicted")
    oracle = tune(cfg, backbone, true, ids, grid, score, "oracle")
    record = {
        "metric": "pixcorr",
        "points": points,
        "oracle_points": oracle,
        "chosen": chosen(points),
        "n_images": len(ids),
        "repeats": options.repeats,
        "image_ids": ids,
        "part": "val",
        "seed": cfg.seed,
        "subject": cfg.subject.name,
        "weights": backbone.weights_hash,
        "settings": settings(cfg),
        "command": " ".join(["python", "experiments/scenes-guidance/tune.py", *without_paths(sys.argv[1:])]),
        "seconds": round(time.monotonic() - started),
    }
    write_json(options.out, record)
    print(f"wrote {options.out}: kappa {record['chosen']['kappa']:g}, eta {record['chosen']['eta']:g}")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the options; what is left are overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="validation images")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kappas", type=numbers, default=[0.2, 0.4, 0.8, 1.6])
    parser.add_argument("--etas", type=numbers, default=[0.2, 0.4, 0.6])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tuning.json"))
    return parser.parse_known_args()


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that decide scores: where files lie on one machine means nothing on another."""
    return [item for item in arguments if not item.startswith(("paths.", "--out="))]


def numbers(text: str) -> list[float]:
    """Read numbers with commas between them."""
    return [float(number) for number in text.split(",")]


def predictions(cfg: Config) -> PredictedFeatures:
    """Return predictions of the validation images, made now where they are missing."""
    prepare(cfg)
    for target in TARGETS:
        extract(derive(cfg, f"target={target}"))
    folder = RunFolder.open(cfg, "predict")
    if not folder.done:
        for target in TARGETS:
            train(derive(cfg, f"target={target}"))
        predict(cfg)
    return PredictedFeatures(folder.path / "predictions.h5")


def evenly(ids: Sequence[int], n: int) -> list[int]:
    """Return ``n`` ids spread evenly over all."""
    return [ids[round(k)] for k in np.linspace(0, len(ids) - 1, min(n, len(ids)))]


def scorer(cfg: Config, ids: Sequence[int]) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float64]]]:
    """Return a function from images (N, R, H, W, 3) to scores per image, under the experiment's protocol."""
    stimuli = Stimuli(stimuli_path(cfg)).images(np.asarray(ids))
    return lambda pictures: score_images(pictures, stimuli, cfg.protocol).scores


def tune(
    cfg: Config,
    backbone: Backbone,
    source: FeatureSource,
    ids: Sequence[int],
    grid: Sequence[tuple[float, float]],
    score: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float64]]],
    name: str,
) -> list[dict[str, Any]]:
    """Sample the grid at once and score every point; the first one is the unguided reference of the paired gains."""
    points: list[dict[str, Any]] = []
    unguided: dict[str, NDArray[np.float64]] = {}
    pictures = sample(cfg, backbone, source, ids, grid)
    for (kappa, eta), shown in zip(grid, pictures, strict=True):
        values = score(shown)
        unguided = unguided or values
        points.append({"kappa": kappa, "eta": eta, **summary(values, unguided, cfg.protocol.n_boot)})
    log.info("%s: %d points scored", name, len(points))
    return points


def sample(
    cfg: Config, backbone: Backbone, source: FeatureSource, ids: Sequence[int], grid: Sequence[tuple[float, float]]
) -> list[NDArray[np.uint8]]:
    """Return images (N, R, H, W, 3) of the images at every point of the grid."""
    at = [replace(cfg, guidance=replace(cfg.guidance, kappa=kappa, eta=eta)) for kappa, eta in grid]
    sampler = GuidedSampler(backbone, cfg, [point_of(one) for one in at])
    generate = GuidedDiffusion(sampler, cfg.seed, cfg.method.repeats)
    made: list[list[NDArray[np.uint8]]] = [[] for _ in grid]
    for batch in tqdm(partition(ids, max(1, cfg.trainer.batch_size // cfg.method.repeats)), unit="batch"):
        rows = {name: torch.from_numpy(source.rows(name, batch)).to(backbone.device) for name in TARGETS}
        for kept, pictures in zip(made, generate(batch, rows), strict=True):
            kept.append(pictures.images)
    return [np.concatenate(kept) for kept in made]


def summary(
    values: dict[str, NDArray[np.float64]], unguided: dict[str, NDArray[np.float64]], n_boot: int
) -> dict[str, float]:
    """Return mean and interval of every score, and of the paired gain over no guidance."""
    record: dict[str, float] = {}
    for name in (name for name in SCORES if name in values):
        mean, gain = bootstrap_interval(values[name], n_boot), paired_difference(values[name], unguided[name], n_boot)
        record |= {name: mean.mean, f"{name}_lo": mean.lo, f"{name}_hi": mean.hi}
        record |= {f"{name}_gain": gain.mean, f"{name}_gain_lo": gain.lo, f"{name}_gain_hi": gain.hi}
    return {name: round(value, 5) for name, value in record.items()}


def chosen(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return kappa and eta of the guided point with the highest sum of PixCorr and low-level identification."""
    # A protocol without a network has no feature levels; identification by pixels stands in.
    level = "two_way_low" if "two_way_low" in points[0] else "two_way_pixels"
    best = max((p for p in points if p["kappa"] > 0), key=lambda point: point["pixcorr"] + point[level])
    return {"kappa": best["kappa"], "eta": best["eta"]}


def settings(cfg: Config) -> dict[str, Any]:
    """Return what else the scores depend on."""
    method, guidance = cfg.method, cfg.guidance
    record = {
        "steps": method.steps,
        "strength": method.strength,
        "cfg_scale": method.cfg_scale,
        "normalise": guidance.normalise,
        "through_unet": guidance.through_unet,
        "layer_weights": list(guidance.layer_weights),
        "layers": list(cfg.target.layers),
        "rescale": cfg.mapper.rescale,
        "protocol": f"{cfg.protocol.name} v{cfg.protocol.version}",
    }
    return record | {"hash": sha256_json(record)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    main()
