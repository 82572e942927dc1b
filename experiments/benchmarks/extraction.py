"""How many images a second the targets z and g are extracted from: image by image, and in batches.

    command   python experiments/benchmarks/extraction.py
    time      40 seconds on 2 CPU cores
    memory    1.2 GB
    found     (a) 76, (b) 370, (c) 355 images/s: 4.9 times as fast, at 60% of the rate of matrix products. One thread:
              78, 231 and 193, 3.0 times. Where other work keeps the cores busy, two threads wait for one another at
              every step and are slower than one (9, 52 and 34): --threads 1 here, OMP_NUM_THREADS=1 for `nd`
    GPU       python experiments/benchmarks/extraction.py --device cuda --precision bfloat16: full-size Stable Diffusion
              VAE at 512 px and ViT-B/32, random weights, 1.3 GB in a temporary folder. So far run on a CPU alone, with
              --weights full --images 6 --turns 1 --batch-size 3 (9 minutes, 8.2 GB)

(a) restates the released loop: one image at a time through Pillow's Lanczos, the VAE with a needless graph, a
posterior sample, then the image tower through all of its blocks with hooks that are set again for each image
(HaoyyLi/NeuralDiffuser@9286cad: src/img2feat_sd_pipe.py, img2feat_guidance.py).
(b) are this package's extractors on batches in memory.
(c) is the whole of `nd extract target=all`: from compressed images on disk to finished stores, models loaded anew.

(a) and (b) take turns on the same images, so that whatever else the machine does meets both. Images are Scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rows import WALL_TIME, Asked, Row, peak_row, seconds_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers_config import target_settings

from nd.backbone.loading import Backbone
from nd.backbone.tower import preprocess
from nd.config import BackboneConfig, Config, Decoding
from nd.config.components import component
from nd.data.image_checks import check_images
from nd.data.prepared import Stimuli, stimuli_path, write_stimuli
from nd.extract import extract
from nd.files import write_json
from nd.scenes.components import ScenesData
from nd.scenes.world import World
from nd.targets.base import Items
from nd.targets.components import build_extractor
from nd.targets.store import extraction_backbone

TARGETS = ["z", "g"]
CLOCK = {"in use": WALL_TIME}
MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
NSD_SIDE, SD_SIDE = 425, 512
SD_VAE = {  # vae/config.json of CompVis/stable-diffusion-v1-4
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": SD_SIDE,
    "scaling_factor": 0.18215,
}


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    asked = parsed(given)
    torch.set_num_threads(asked.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        cfg = configured(asked, Path(folder))
        images = World(cfg.data).images
        write_stimuli(
            stimuli_path(cfg), images=images, captions=[["a scene"]] * len(images), image_id=np.arange(len(images))
        )
        backbone = extraction_backbone(cfg, asked.precision, torch.device(asked.device))
        print(f"{len(images)} images of {images.shape[1]} px, {asked.weights} models at {cfg.backbone.image_size} px")
        print(f"{asked.device}, {asked.precision}; {os.cpu_count()} cores, {torch.get_num_threads()} threads")
        figures = in_turns(backbone, cfg, images, asked)
        figures |= whole_verb(cfg, len(images)) | parts(backbone, cfg, images, asked.batch_size)
        figures |= arithmetic(backbone, cfg, images[:1], figures["batched_per_s"])
    show(figures)
    if asked.out:
        write_json(Path(asked.out), {"asked": vars(asked), "machine": platform.platform(), **figures})
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of both ways, of the whole verb and of the share of matrix products' rate."""
    full = asked.cuda and not asked.quick
    CLOCK["in use"] = asked.clock
    sizes = ["--images", str(asked.pick(12, 200)), "--turns", str(asked.pick(2, 5))]
    batch = ["--batch-size", str(asked.pick(4, 16 if full else 40)), "--threads", "1", "--device", asked.device]
    figures = main([*sizes, *batch, *(["--precision", "bfloat16"] if full else ["--weights", "shipped"])])
    which = "Stable Diffusion's size, bfloat16" if full else "Scenes models"
    rows = [
        Row(case=f"z and g, {which}", unit="images/s", ours=figures["batched_turns"], peer="one by one, as released",
            theirs=figures["one_by_one_turns"], more=True, clock=asked.clock),
        Row(case=f"nd extract, from files to stores, {which}", unit="images/s", ours=[figures["verb_per_s"]], more=True,
            clock=asked.clock),
        Row(case=f"z and g, {which}", unit="of torch.mm's rate", ours=[figures["share"]], more=True, clock=asked.clock),
    ]  # fmt: skip
    return [*rows, peak_row()]


def parsed(given: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5, help="turns that the two ways take")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--weights", default="", choices=("", "shipped", "full"), help="default: full on cuda")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=0, help="of torch; default: its own choice")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    asked = parser.parse_args(given)
    asked.weights = asked.weights or ("full" if asked.device == "cuda" else "shipped")
    return asked


def with_precision(name: str, precision: str, cfg: Config) -> Decoding:
    """How a target is decoded, which only matters for the arithmetic it is extracted in."""
    return Decoding(target=component("target", name).settings(precision=precision), mapper=cfg.mapper)


def configured(asked: argparse.Namespace, folder: Path) -> Config:
    """Scenes images, their models or Stable Diffusion's, and folders for everything that is written."""
    shipped, part = asked.weights == "shipped", max(1, asked.images // 10)
    half = [0.5, 0.5, 0.5]
    cfg = Config(
        data=ScenesData(
            image_size=64 if shipped else NSD_SIDE, n_train=asked.images - part, n_test=part, n_val=max(1, part // 2)
        ),
        backbone=BackboneConfig(tower_mean=half, tower_std=half) if shipped else full_size(folder / "models"),
    )
    cfg.paths.data, cfg.paths.cache = str(folder / "data"), str(folder / "cache")
    cfg.method.targets = {name: {} for name in TARGETS}
    cfg.target = target_settings(name=TARGETS[0], precision=asked.precision)
    cfg.target.name = "all"
    cfg.decodings = {name: with_precision(name, asked.precision, cfg) for name in TARGETS}
    cfg.trainer.batch_size, cfg.trainer.progress = asked.batch_size, False
    cfg.trainer.accelerator = "gpu" if asked.device == "cuda" else "cpu"
    stimuli_path(cfg).parent.mkdir(parents=True)
    return cfg


def full_size(folder: Path) -> BackboneConfig:
    """Models of full size and random weights, written in the layouts that are read: 0.3 and 0.6 GB."""
    import open_clip
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    model = "ViT-B-32-quickgelu"
    AutoencoderKL(**SD_VAE).save_pretrained(folder / "vae")
    weights = open_clip.create_model(model, pretrained=None).state_dict()
    tower = folder / "image_tower"
    tower.mkdir()
    save_file({name: values.contiguous() for name, values in weights.items()}, tower / "open_clip_model.safetensors")
    settings = json.dumps({"model_cfg": open_clip.get_model_config(model)})
    (tower / "open_clip_config.json").write_text(settings, encoding="utf-8")
    return BackboneConfig(weights=str(folder), image_tower=str(tower), image_size=SD_SIDE, tower_size=224)


# ---- (a) and (b) ---------------------------------------------------------------------------------------------------


def one_by_one(backbone: Backbone, images: NDArray[np.uint8], n_layers: int) -> list[NDArray[np.float32]]:
    """The released loop: latent and features of one image after another."""
    found: list[NDArray[np.float32]] = []
    config, device = backbone.config, backbone.device
    for image in images:
        picture = Image.fromarray(image).convert("RGB").resize((config.image_size,) * 2, Image.Resampling.LANCZOS)
        x_1HW3 = torch.from_numpy(np.array(picture)[None].astype(np.float32) / 255)
        x_13HW = (2 * x_1HW3.permute(0, 3, 1, 2) - 1).to(device, backbone.dtype)
        latent = backbone.vae.encode(x_13HW).latent_dist.sample() * backbone.scaling_factor
        found.append(latent.detach().float().cpu().numpy())
        pixels_13HW = torch.from_numpy(np.array(Image.fromarray(image)).astype(np.float32) / 255).permute(2, 0, 1)[None]
        inputs = preprocess(pixels_13HW.to(device), config.tower_size, config.tower_mean, config.tower_std)
        found.extend(hooked(backbone.tower, inputs.to(backbone.dtype))[:n_layers])
    return found


def hooked(tower: nn.Module, inputs: Tensor) -> list[NDArray[np.float32]]:
    """What hooks on the second linear layer of every block catch, set and removed for this image."""
    caught: list[NDArray[np.float32]] = []

    def catch(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append(output.float().cpu().numpy().reshape(1, -1))

    tower.apply(lambda module: None)  # convert_relu, which finds nothing to convert
    hooks = [module.register_forward_hook(catch) for name, module in tower.named_modules() if name.endswith("c_proj")]
    with torch.no_grad():
        tower(inputs)
    for hook in hooks:
        hook.remove()
    return caught


def batched(backbone: Backbone, cfg: Config, images: NDArray[np.uint8], batch_size: int) -> list[Any]:
    """z and g of all images by this package's extractors."""
    extractors, found = [build_extractor(name, cfg, backbone) for name in TARGETS], []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        items = Items(np.arange(start, start + len(part), dtype=np.int32), part)
        found += [extractor(items) for extractor in extractors]
    return found


def in_turns(backbone: Backbone, cfg: Config, images: NDArray[np.uint8], asked: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of both ways, turn by turn on the same images, after a turn that warms up."""
    n_layers, rates = len(cfg.decoding("g").target.layers), []
    for turn, part in enumerate([images[: asked.batch_size], *np.array_split(images, asked.turns)]):
        with as_released(backbone):
            slow_s = seconds(one_by_one, backbone, part, n_layers)
        fast_s = seconds(batched, backbone, cfg, part, asked.batch_size)
        if turn:
            rates.append((len(part) / slow_s, len(part) / fast_s))
    turns = [list(values) for values in zip(*rates, strict=True)]
    slow, fast = (statistics.harmonic_mean(values) for values in zip(*rates, strict=True))
    return {
        "one_by_one_turns": turns[0],
        "batched_turns": turns[1],
        "one_by_one_per_s": slow,
        "batched_per_s": fast,
        "ratio": fast / slow,
        "ratio_of_turns": sorted(b / a for a, b in rates),
    }


@contextmanager
def as_released(backbone: Backbone) -> Iterator[None]:
    """Weights that ask for gradients, as they come from the library: the released loop freezes nothing."""
    backbone.vae.requires_grad_(True)
    yield
    backbone.vae.requires_grad_(False)


# ---- (c) and where the time goes -----------------------------------------------------------------------------------


def whole_verb(cfg: Config, n_images: int) -> dict[str, float]:
    """Pictures a second of `nd extract target=all`."""
    return {"verb_per_s": n_images / seconds(extract, cfg)}


def parts(backbone: Backbone, cfg: Config, images: NDArray[np.uint8], batch_size: int) -> dict[str, Any]:
    """Milliseconds an image that each step of extraction takes, the median over the batches."""
    stimuli, found = Stimuli(stimuli_path(cfg)), defaultdict(list)
    extractors = [build_extractor(name, cfg, backbone) for name in TARGETS]
    for start in range(0, len(images), batch_size):
        ids = np.arange(start, min(start + batch_size, len(images)))
        items = Items(ids.astype(np.int32), images[ids])
        steps: dict[str, tuple[Callable[..., Any], Any]] = {
            "read pictures": (stimuli.images, ids),
            "look at pictures": (partial(check_images, ids=ids), items.images),
            "resize, to floats": (backbone.to_float, items.images),
            **{extractor.name: (extractor, items) for extractor in extractors},
        }
        for name, (step, given) in steps.items():
            found[name].append(1000 * seconds(step, given) / len(ids))
    return {"ms_per_picture": {name: statistics.median(values) for name, values in found.items()}}


def arithmetic(backbone: Backbone, cfg: Config, image: NDArray[np.uint8], rate: float) -> dict[str, float]:
    """Operations of one image, and the share of the measured rate of matrix products that extraction reaches."""
    with FlopCounterMode(display=False) as counter:
        batched(backbone, cfg, image, 1)
    peak = matmul_rate(backbone.device.type, backbone.dtype)
    operations = float(counter.get_total_flops())
    return {"gflop_per_picture": operations / 1e9, "matmul_tflops": peak / 1e12, "share": rate * operations / peak}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of large matrix products, the best of ten."""
    side = MATMUL_SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(torch.mm, a, b) for _ in range(10))


def seconds(work: Callable[..., Any], *given: Any) -> float:
    """Time of some work by the clock in use, the device's share included."""
    return seconds_of(work, *given, clock=CLOCK["in use"])


def show(figures: dict[str, Any]) -> None:
    """The table."""
    low, high = figures["ratio_of_turns"][0], figures["ratio_of_turns"][-1]
    print(f"(a) one by one, as released   {figures['one_by_one_per_s']:8.3g} images/s")
    print(f"(b) extractors, in batches    {figures['batched_per_s']:8.3g} images/s")
    print(f"    ratio                     {figures['ratio']:8.1f}  (turns: {low:.1f} to {high:.1f})")
    print(f"(c) nd extract, all of it     {figures['verb_per_s']:8.3g} images/s")
    print("milliseconds a picture: " + ", ".join(f"{k} {v:.2f}" for k, v in figures["ms_per_picture"].items()))
    print(
        f"{figures['gflop_per_picture']:.2f} GFLOP an image; (b) reaches {figures['share']:.0%} of the "
        f"{figures['matmul_tflops']:.2f} TFLOP/s of a matrix product in the same precision"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)
    print(f"peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
