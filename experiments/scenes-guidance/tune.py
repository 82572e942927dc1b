"""Choose the sampler's settings on validation images, with predicted features. Test images take no part.

    python experiments/scenes-guidance/tune.py experiment=scenes
    python experiments/scenes-guidance/tune.py --images 40 --kappas 0.1,0.3 --etas 0.2,0.4 experiment=scenes

Runs what is missing before it (prepare .. predict, mappers fitted on training images alone). Then, each by the highest
sum of the protocol's scores in SUM: rescale, the spread of each target, strength, cfg_scale and the guidance's decoder,
one after the other from the experiment's own values; a grid over kappa and eta, for predicted and for true features;
and the gradient through the UNet, at every kappa of the grid and as many guided steps as cost no more FLOPs, chosen
where it does better. Writes tuning.json beside itself: scores with 95% intervals over images, the paired gain over no
guidance, and what was chosen. Everything after the options are overrides as for `nd run`. `--grid-only` leaves out all
but the grid, `--keys` all but the search of some settings, which may be tried again when kappa and eta have changed.
A protocol without feature levels chooses by PixCorr and identification by pixels.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
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
# What is chosen has the highest sum: fidelity of pixels and identification at three levels count alike.
SUM = ("pixcorr", "ssim", "two_way_low", "two_way_mid", "two_way_high")
SUM_OF_PIXELS = ("pixcorr", "two_way_pixels")
SEARCHED = {
    "mapper.rescale": ("none", "train"),
    "method.targets.z.mapper.spread": ("0.8", "1", "1.2", "1.4"),
    "method.targets.c.mapper.spread": ("1", "1.2", "1.4"),
    "method.targets.g.mapper.spread": ("1", "1.3", "1.6"),
    "method.strength": ("0.3", "0.45", "0.6", "0.75", "0.9"),
    "method.cfg_scale": ("1.5", "2", "3.5", "5"),
    "guidance.decoder": ("full", "half"),
}
SCORES = ("pixcorr", "ssim", "two_way_pixels", "two_way_low", "two_way_mid", "two_way_high", "consistency_pixcorr")


def main() -> None:
    """Tune and write the record."""
    options, overrides = arguments()
    base = validation(overrides, options.repeats)
    started = time.monotonic()
    study = Study(base, options.images)
    found = searched(study, options.keys) if options.keys else tuned(study, options)
    record = {
        "metric": "pixcorr",
        **found,
        "n_images": len(study.ids),
        "repeats": options.repeats,
        "image_ids": study.ids,
        "part": "val",
        **study.provenance(found["chosen"]["overrides"]),
        "command": " ".join(["python", "experiments/scenes-guidance/tune.py", *without_paths(sys.argv[1:])]),
        "seconds": round(time.monotonic() - started),
    }
    write_json(options.out, record)
    print(f"wrote {options.out}: {' '.join(f'{key} {value}' for key, value in found['chosen'].items())}")


def validation(overrides: Sequence[str], repeats: int) -> list[str]:
    """Return the overrides under which validation images judge, and nothing was fitted on them."""
    base = [*overrides, f"method.repeats={repeats}"]
    if hasattr(compose(base).mapper, "refit"):  # ridge; networks never see validation images but to keep their best
        base.append("mapper.refit=false")
    return [*base, "part=val"]  # which is refused beside a mapper that is fitted again on these images


def tuned(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """Choose everything, one after the other."""
    tried, found = study.search({} if options.grid_only else SEARCHED)
    grid = [(0.0, 0.0)] + [(kappa, eta) for eta in options.etas for kappa in options.kappas if kappa > 0]
    points = study.grid(found, grid, "predicted")
    oracle = study.grid(found, grid, "oracle")
    best = chosen(points)
    through = {} if options.grid_only else study.through_unet(found, best, options.kappas)
    if through and total(published := max(through["points"], key=total)) > max(total(p) for p in points):
        best, found = chosen([published]), [*found, "guidance.through_unet=true"]
    return {
        "sum": list(summed(points[0])),
        "searched": tried,
        "points": points,
        "oracle_points": oracle,
        "through_unet": through,
        "chosen": best | {"overrides": found},
    }


def searched(study: Study, keys: Sequence[str]) -> dict[str, Any]:
    """Choose some keys alone, everything else as the experiment has it."""
    tried, found = study.search({key: SEARCHED[key] for key in keys})
    return {"searched": tried, "chosen": {"overrides": found}}


Scores = dict[str, NDArray[np.float64]]


class Operations(TorchDispatchMode):
    """Counts floating-point operations, of gradients too; PyTorch's own counter cannot watch `torch.autograd.grad`."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # inference mode hands composite operations over whole
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        if (packet := func._overloadpacket) in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


class Study:
    """Validation images under changed settings."""

    def __init__(self, base: Sequence[str], n_images: int) -> None:
        self.base = list(base)
        cfg = self.cfg([])
        prepare(cfg)
        for target in TARGETS:
            extract(derive(cfg, f"target={target}"))
        self.ids = evenly(part_ids(cfg), n_images)
        self.backbone = load_backbone(cfg.backbone, pick_device(cfg.trainer.accelerator))
        self.true = TrueFeatures({name: store_path(cfg, name) for name in TARGETS})
        stimuli = Stimuli(stimuli_path(cfg)).images(np.asarray(self.ids))
        self.score = lambda images: score_images(images, stimuli, cfg.protocol).scores

    def cfg(self, changes: Sequence[str]) -> Config:
        """Return the experiment with some settings changed."""
        return compose([*self.base, *changes])

    def search(self, values: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, Any]], list[str]]:
        """Try every value of every key, one key after the other; return what was tried and the best overrides."""
        tried: list[dict[str, Any]] = []
        best: list[str] = []
        for key, options in values.items():
            trials = [[*best, f"{key}={value}"] for value in options]
            sums = []
            for trial in trials:
                (scores,) = self.images(self.cfg(trial), [None], "predicted")
                means = {name: round(float(scores[name].mean()), 5) for name in summed(scores)}
                sums.append(sum(means.values()))
                tried.append({"overrides": trial, "sum": round(sums[-1], 5), **means})
                log.warning("%s: %.4f", " ".join(trial), sums[-1])
            best = trials[int(np.argmax(sums))]
        return tried, best

    def grid(self, changes: Sequence[str], grid: Sequence[tuple[float, float]], source: str) -> list[dict[str, Any]]:
        """Sample all points of kappa and eta at once; the first one is the reference of the paired gains."""
        cfg = self.cfg(changes)
        scored = self.images(cfg, grid, source)
        return [
            {"kappa": kappa, "eta": eta, **summary(scores, scored[0], cfg.protocol.n_boot)}
            for (kappa, eta), scores in zip(grid, scored, strict=True)
        ]

    def images(self, cfg: Config, grid: Sequence[tuple[float, float] | None], source: str) -> list[Scores]:
        """Scores per image at every point of the grid, None for the configuration's own."""
        steered = [cfg.guidance if at is None else replace(cfg.guidance, kappa=at[0], eta=at[1]) for at in grid]
        points = [replace(cfg, guidance=guidance) for guidance in steered]
        features = self.true if source == "oracle" else predictions(cfg)
        return [self.score(images) for images in sample(cfg, self.backbone, features, self.ids, points)]

    def through_unet(self, changes: Sequence[str], best: dict[str, float], kappas: Sequence[float]) -> dict[str, Any]:
        """The published gradient, with at most the FLOPs of the chosen point: fewer guided steps, every kappa."""
        limit = self.tflop([*changes, f"guidance.kappa={best['kappa']}", f"guidance.eta={best['eta']}"])
        through = [*changes, "guidance.through_unet=true", f"guidance.kappa={best['kappa']}"]
        etas = [round(eta, 2) for eta in np.arange(0.1, 1.01, 0.1)]
        costs = {eta: self.tflop([*through, f"guidance.eta={eta}"]) for eta in etas}
        eta = max((eta for eta, cost in costs.items() if cost <= limit), default=etas[0])
        points = self.grid(through, [(0.0, 0.0)] + [(kappa, eta) for kappa in kappas], "predicted")[1:]
        return {"tflop": round(costs[eta], 4), "tflop_chosen": round(limit, 4), "points": points}

    def tflop(self, changes: Sequence[str]) -> float:
        """Counted TFLOP of sampling one part of the plan, which repeats fill up; only ratios mean something."""
        cfg = self.cfg(changes)
        with Operations() as counted:
            sample(cfg, self.backbone, self.true, self.ids[:1], [cfg])
        return counted.total / 1e12

    def provenance(self, changes: Sequence[str]) -> dict[str, Any]:
        """What else the scores depend on."""
        cfg = self.cfg(changes)
        return {
            "seed": cfg.seed,
            "subject": cfg.subject.name,
            "weights": self.backbone.weights_hash,
            "settings": settings(cfg),
        }


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the options; what is left are overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="validation images")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kappas", type=numbers, default=[0.2, 0.4, 0.8, 1.6])
    parser.add_argument("--etas", type=numbers, default=[0.2, 0.4, 0.6])
    parser.add_argument("--keys", nargs="*", default=[], choices=list(SEARCHED), help="search these alone, no grid")
    parser.add_argument("--grid-only", action="store_true", help="kappa and eta alone")
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
    folder = RunFolder.open(cfg, "predict")
    if not folder.done:
        for target in TARGETS:
            train(derive(cfg, f"target={target}"))
        predict(cfg)
    return PredictedFeatures(folder.path / "predictions.h5")


def evenly(ids: Sequence[int], n: int) -> list[int]:
    """Return ``n`` ids spread evenly over all."""
    return [ids[round(k)] for k in np.linspace(0, len(ids) - 1, min(n, len(ids)))]


def sample(
    cfg: Config, backbone: Backbone, source: FeatureSource, ids: Sequence[int], points: Sequence[Config]
) -> list[NDArray[np.uint8]]:
    """Return images (N, R, H, W, 3) of the images at every point, which differ in guidance alone."""
    generate = GuidedDiffusion(
        GuidedSampler(backbone, cfg, [point_of(one) for one in points]), cfg.seed, cfg.method.repeats
    )
    made: list[list[NDArray[np.uint8]]] = [[] for _ in points]
    for batch in tqdm(partition(ids, max(1, cfg.trainer.batch_size // cfg.method.repeats)), unit="batch", leave=False):
        rows = {name: torch.from_numpy(source.rows(name, batch)).to(backbone.device) for name in TARGETS}
        for kept, images in zip(made, generate(batch, rows), strict=True):
            kept.append(images.images)
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


def chosen(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return kappa and eta of the guided point with the highest sum of scores."""
    best = max((p for p in points if p["kappa"] > 0), key=total)
    return {"kappa": best["kappa"], "eta": best["eta"]}


def total(point: Mapping[str, Any]) -> float:
    """Return the sum of a point's scores that decides."""
    return sum(float(point[name]) for name in summed(point))


def summed(scores: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the scores whose sum decides."""
    return SUM if "two_way_low" in scores else SUM_OF_PIXELS


def settings(cfg: Config) -> dict[str, Any]:
    """Return what else the scores depend on."""
    method, guidance = cfg.method, cfg.guidance
    record = {
        "steps": method.steps,
        "strength": method.strength,
        "cfg_scale": method.cfg_scale,
        "normalise": guidance.normalise,
        "through_unet": guidance.through_unet,
        "decoder": guidance.decoder,
        "layer_weights": list(guidance.layer_weights),
        "layers": list(cfg.decoding("g").target.layers),
        "rescale": cfg.mapper.rescale,
        "protocol": f"{cfg.protocol.name} v{cfg.protocol.version}",
    }
    return record | {"hash": sha256_json(record)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    main()
