"""Train the Scenes backbone on drawn pictures and export it: see README.md for the command and its figures.

Stages, each resumed from its files in the work folder: pictures, autoencoder, CLIP, cached latents and caption states,
denoiser (one process for each core), export. `--quick` runs all of them in about a minute, for tests.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
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
from backbone_training.tokenizer import build_tokenizer
from backbone_training.unet import UnetRecipe, encode_captions, fit_unet
from backbone_training.vae import VaeRecipe, encode, fit_vae
from nd.scenes.captions import captions, vocabulary
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene

log = logging.getLogger("scenes-backbone")

# The embedded experiment shows its brains the world of seed 7, so no stimulus of it is ever trained on here.
WORLD_SEED = 1
CONTEXT = 24
IMAGE_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained for how long."""

    pictures: int
    vae: VaeRecipe
    clip: ClipRecipe
    unet: UnetRecipe


def _how(steps: int, batch: int, rate: float, warmup: int, average: float, decay: float = 0.0) -> Optimisation:
    return Optimisation(
        steps=steps, batch=batch, learning_rate=rate, warmup=warmup, average=average, weight_decay=decay
    )


FULL = Plan(
    pictures=40_000,
    vae=VaeRecipe(how=_how(1600, 32, 2e-3, 100, 0.998)),
    clip=ClipRecipe(how=_how(1400, 128, 1e-3, 150, 0.99, 0.05)),
    unet=UnetRecipe(how=_how(4900, 32, 1e-3, 300, 0.999)),  # batch of each of two processes
)
QUICK = Plan(
    pictures=64,
    vae=replace(FULL.vae, widths=(8, 8, 8), how=_how(3, 4, 2e-3, 1, 0.9)),
    clip=replace(FULL.clip, image_layers=2, image_width=32, text_layers=1, text_width=32, how=_how(3, 8, 1e-3, 1, 0.9)),
    unet=replace(FULL.unet, widths=(8, 16, 16), how=_how(3, 4, 1e-3, 1, 0.9)),
)


def main() -> None:
    """Run the stages."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the backbone is exported")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-backbone"), help="files of the stages")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the pictures' seed is fixed")
    parser.add_argument("--processes", type=int, default=2, help="for the denoiser, one thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args()
    plan = QUICK if args.quick else FULL
    args.work.mkdir(parents=True, exist_ok=True)

    images_NHW3 = cached(args.work / "pictures.npy", lambda: draw_many(WORLD_SEED, range(plan.pictures)))
    vae = fit_vae(images_NHW3, plan.vae, seed=args.seed, checkpoint=args.work / "vae.pt")
    vae.save_pretrained(args.work / "vae")
    said = [captions(sample_scene(WORLD_SEED, i)) for i in range(plan.pictures)]
    tokenizer = build_tokenizer(vocabulary(), args.work / "tokenizer", CONTEXT)
    clip = fit_clip(images_NHW3, said, tokenizer, plan.clip, seed=args.seed, checkpoint=args.work / "clip.pt")
    torch.save(clip.state_dict(), args.work / "clip_model.pt")
    encoder = text_encoder(clip, plan.clip, tokenizer)
    cached(args.work / "latents.npy", lambda: encode(vae, images_NHW3).numpy())
    cached(args.work / "states.npy", lambda: encode_captions(encoder, tokenizer, said))
    cached(args.work / "empty.npy", lambda: encode_captions(encoder, tokenizer, [[""]])[0, 0])
    denoise(args.processes, plan, args.work, args.out, args.seed)
    log.info("exported to %s", args.out)


def cached(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array in `path`, made and written first where it is absent; read as a memory map."""
    if not path.exists():
        log.info("making %s", path.name)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make())
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def denoise(processes: int, plan: Plan, work: Path, out: Path, seed: int) -> None:
    """Fit the denoiser in several processes that share gradients, exporting at every checkpoint."""
    meeting = work.resolve() / "meeting-point"
    meeting.unlink(missing_ok=True)
    work_of_each = (processes, plan, work, out, seed, f"file://{meeting}")
    torch.multiprocessing.spawn(_denoise, work_of_each, nprocs=processes)


def _denoise(rank: int, processes: int, plan: Plan, work: Path, out: Path, seed: int, meeting: str) -> None:
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    clip = CLIP(**clip_config(plan.clip, IMAGE_SIZE, CLIPTokenizer.from_pretrained(work / "tokenizer"))).eval()
    clip.load_state_dict(torch.load(work / "clip_model.pt", weights_only=True))

    def export(unet: torch.nn.Module, _: int) -> None:
        export_backbone(out, vae, unet, clip, plan.clip, work / "tokenizer", IMAGE_SIZE)

    fit_unet(
        torch.from_numpy(np.load(work / "latents.npy")),
        np.load(work / "states.npy", mmap_mode="r"),
        np.load(work / "empty.npy"),
        plan.unet,
        seed=seed,
        checkpoint=work / "unet.pt",
        after_checkpoint=export,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
