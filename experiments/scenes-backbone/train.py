"""Train the Scenes backbone on drawn images and export it: see README.md for the command and its figures.

Stages, each resumed from its files in the work folder: images; autoencoder and its latents, in one process, beside CLIP
and its caption states; denoiser; export. CLIP and denoiser are trained by two processes that share gradients.
`--quick` runs all of it in about a minute, for tests.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from open_clip.model import CLIP
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from backbone_training.clip import ClipRecipe, clip_config, fit_clip, text_encoder
from backbone_training.export import export_backbone
from backbone_training.loop import Optimisation
from backbone_training.patches import Patches
from backbone_training.tokenizer import build_tokenizer
from backbone_training.unet import UnetRecipe, encode_captions, fit_unet
from backbone_training.vae import VaeRecipe, encode, fit_vae
from nd.scenes.captions import captions, vocabulary
from nd.scenes.colours import COLOUR_WORDS
from nd.scenes.draw import covers, draw_scenes
from nd.scenes.scene import Scene, Thing, rearranged, sample_scene
from nd.scenes.shapes import SHAPES

log = logging.getLogger("scenes-backbone")

# The embedded experiment shows its brains the world of seed 7, so no stimulus of it is ever trained on here.
WORLD_SEED = 1
CONTEXT = 24
IMAGE_SIZE = 64
# Images that share background and colours: told apart by shapes, number and places alone, which a batch of unrelated
# scenes would hardly teach.
VARIANTS = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained for how long."""

    images: int
    vae: VaeRecipe
    clip: ClipRecipe
    unet: UnetRecipe


def _how(steps: int, batch: int, rate: float, warmup: int, average: float, decay: float = 0.0) -> Optimisation:
    return Optimisation(
        steps=steps, batch=batch, learning_rate=rate, warmup=warmup, average=average, weight_decay=decay
    )


FULL = Plan(
    images=60_000,
    vae=VaeRecipe(kl_weight=1e-4, how=_how(1600, 32, 2e-3, 100, 0.995)),
    clip=ClipRecipe(
        image_width=128,
        image_layers=6,
        mlp_ratio=2.0,
        positions="sin_cos_2d",
        mimetic=True,
        patch_dropout=0.0,
        group=VARIANTS,
        words_weight=0.1,
        patches_weight=1.0,
        # The batch is that of each of two processes, below too.
        how=replace(_how(2900, 64, 1e-3, 100, 0.998, 0.05), muon_rate=0.02, decay_share=0.2),
    ),
    unet=UnetRecipe(
        widths=(48, 96, 128), patches_weight=0.05, how=replace(_how(6000, 32, 1.5e-3, 300, 0.999), decay_share=0.25)
    ),
)
QUICK = Plan(
    images=64,
    vae=replace(FULL.vae, widths=(8, 8, 8), how=_how(3, 4, 2e-3, 1, 0.9)),
    clip=replace(FULL.clip, image_layers=2, image_width=32, text_layers=1, text_width=32, how=_how(3, 8, 1e-3, 1, 0.9)),
    unet=replace(FULL.unet, widths=(8, 16, 16), how=_how(3, 4, 1e-3, 1, 0.9)),
)


@dataclass(frozen=True)
class Job:
    """One training: what, where and from which seed."""

    plan: Plan
    work: Path
    out: Path
    seed: int


def main() -> None:
    """Run the stages."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the backbone is exported")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-backbone"), help="files of the stages")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the images' seed is fixed")
    parser.add_argument("--processes", type=int, default=2, help="for CLIP and the denoiser, which share gradients")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args()
    started = time.time()
    job = Job(QUICK if args.quick else FULL, args.work, args.out, args.seed)
    job.work.mkdir(parents=True, exist_ok=True)
    cached(job.work / "images.npy", lambda: draw_scenes(training_scenes(job.plan.images)))
    build_tokenizer(vocabulary(), job.work / "tokenizer", CONTEXT)
    for meeting in job.work.glob("meeting-*"):
        meeting.unlink()
    autoencoder = torch.multiprocessing.spawn(_autoencoder, (job,), nprocs=1, join=False)
    torch.multiprocessing.spawn(_clip, (args.processes, job), nprocs=args.processes)
    autoencoder.join()
    log.info("autoencoder and CLIP: %.0f min", (time.time() - started) / 60)
    torch.multiprocessing.spawn(_denoise, (args.processes, job), nprocs=args.processes)
    log.info("exported to %s after %.0f min", job.out, (time.time() - started) / 60)


def training_scenes(n: int) -> list[Scene]:
    """Scenes in groups of VARIANTS that share background and colours."""
    return [rearranged(sample_scene(WORLD_SEED, i // VARIANTS), i % VARIANTS) for i in range(n)]


def cached(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array in `path`, made and written first where it is absent; read as a memory map."""
    if not path.exists():
        log.info("making %s", path.name)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def seen_in_patches(scenes: Sequence[Scene], side: int) -> Patches:
    """What each of side x side patches shows: which object (shape, colour word), how it lies, and where exactly.

    An object is seen in a patch if it covers a quarter of its 16 points. Its pose is the place of the patch's centre
    in the object's own upright frame, in radii, then 4 radius and 2 tilt_rad, all about as large as 1.
    """
    fine = 4 * side
    x, y = np.meshgrid(*((np.arange(fine, dtype=np.float32) + 0.5) / fine,) * 2)
    centre_x, centre_y = np.meshgrid(*((np.arange(side, dtype=np.float32) + 0.5) / side,) * 2)
    labels = np.zeros((len(scenes), side, side, 2), np.int8)
    pose = np.zeros((len(scenes), side, side, 4), np.float16)
    cover = np.zeros((len(scenes), side, side, 16), bool)
    for n, scene in enumerate(scenes):
        for thing in scene.things:  # later ones lie in front
            points = covers(thing, x, y).reshape(side, 4, side, 4).swapaxes(1, 2).reshape(side, side, 16)
            there = points.mean(-1) >= 0.25
            labels[n][there] = 1 + SHAPES.index(thing.shape), 1 + list(COLOUR_WORDS).index(thing.colour)
            pose[n][there] = _pose(thing, centre_x[there], centre_y[there])
            cover[n] |= points
    return Patches(*(a.reshape(len(scenes), side * side, -1) for a in (labels, pose, cover)))


def _pose(thing: Thing, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, 4): how the object lies as seen from each of M places."""
    dx, dy = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    c, s = np.cos(thing.tilt_rad), np.sin(thing.tilt_rad)
    ones = np.ones_like(x)
    return np.stack([c * dx + s * dy, c * dy - s * dx, 4 * thing.radius * ones, 2 * thing.tilt_rad * ones], -1)


def begin(rank: int, n_processes: int, meeting: Path | None = None) -> None:
    """Logging of a process, its share of the threads, and where it meets the others."""
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // n_processes))
    if meeting:
        place = f"file://{meeting.resolve()}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=n_processes)


def _autoencoder(_: int, job: Job) -> None:
    """The autoencoder and the latents of all images, in a thread of its own."""
    begin(0, os.cpu_count() or 1)
    images_NHW3 = np.load(job.work / "images.npy", mmap_mode="r")
    vae = fit_vae(images_NHW3, job.plan.vae, seed=job.seed, checkpoint=job.work / "vae.pt")
    vae.save_pretrained(job.work / "vae")
    cached(job.work / "latents.npy", lambda: encode(vae, images_NHW3).numpy())


def _clip(rank: int, processes: int, job: Job) -> None:
    """Both towers, and the text encoder's states of all captions."""
    begin(rank, processes, job.work / "meeting-clip")
    tokenizer = CLIPTokenizer.from_pretrained(job.work / "tokenizer")
    scenes, recipe = training_scenes(job.plan.images), job.plan.clip
    said = [captions(scene) for scene in scenes]
    images_NHW3 = np.load(job.work / "images.npy", mmap_mode="r")
    patches = seen_in_patches(scenes, IMAGE_SIZE // recipe.patch)
    options = {"seed": job.seed, "checkpoint": job.work / "clip.pt", "patches": patches}
    clip = fit_clip(images_NHW3, said, tokenizer, recipe, **options)
    dist.destroy_process_group()
    if rank == 0:
        torch.set_num_threads(os.cpu_count() or 1)  # the other process is done
        torch.save(clip.state_dict(), job.work / "clip_model.pt")
        encoder = text_encoder(clip, recipe, tokenizer)
        cached(job.work / "states.npy", lambda: encode_captions(encoder, tokenizer, said))
        cached(job.work / "empty.npy", lambda: encode_captions(encoder, tokenizer, [[""]])[0, 0])


def _denoise(rank: int, processes: int, job: Job) -> None:
    """Fit the denoiser, exporting at every checkpoint."""
    begin(rank, processes, job.work / "meeting-unet")
    work, plan = job.work, job.plan
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    clip = CLIP(**clip_config(plan.clip, IMAGE_SIZE, CLIPTokenizer.from_pretrained(work / "tokenizer"))).eval()
    clip.load_state_dict(torch.load(work / "clip_model.pt", weights_only=True))
    patches = seen_in_patches(training_scenes(plan.images), IMAGE_SIZE // plan.clip.patch)

    def export(unet: torch.nn.Module, _: int) -> None:
        export_backbone(job.out, vae, unet, clip, plan.clip, work / "tokenizer", IMAGE_SIZE)

    fit_unet(
        torch.from_numpy(np.load(work / "latents.npy")),
        np.load(work / "states.npy", mmap_mode="r"),
        np.load(work / "empty.npy"),
        plan.unet,
        seed=job.seed,
        checkpoint=work / "unet.pt",
        after_checkpoint=export,
        patches=patches,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
