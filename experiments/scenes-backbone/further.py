"""Train the denoiser of a finished Scenes backbone further.

    python experiments/scenes-backbone/further.py --weights weights/first --out nd/weights/scenes --seed 1

Run once from start to end on what train.py had made, in 109 minutes on two cores (bf16) that other work shared; the
shipped weights are its.
The autoencoder, the towers and the text encoder stay as they are: the folder is copied and its UNet replaced. Latents
and caption states are worked out once, in the work folder, from which an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training
sys.path.insert(0, str(Path(__file__).parent))  # train

from train import FULL, IMAGE_SIZE, QUICK, begin, cached, seen_in_patches, training_scenes

from backbone_training.export import half
from backbone_training.unet import UnetRecipe, encode_captions, fit_unet
from backbone_training.vae import encode
from nd.scenes.captions import captions
from nd.scenes.draw import draw_scenes

log = logging.getLogger("scenes-backbone")


@dataclass(frozen=True, kw_only=True)
class Further:
    """From which backbone to which, on how many images, in which way."""

    weights: Path
    out: Path
    work: Path
    seed: int
    images: int
    recipe: UnetRecipe


# Half as many again as in the first training, so that each is still seen few times.
IMAGES = 96_000
RECIPE = replace(
    FULL.unet,
    how=replace(FULL.unet.how, steps=6_500, batch=64, warmup=200, decay_share=0.6),  # a batch of each process
)


def main() -> None:
    """Prepare, train, export."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the backbone to begin with")
    parser.add_argument("--out", type=Path, required=True, help="where the backbone is exported")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-backbone-further"), help="files of the stages")
    parser.add_argument("--seed", type=int, default=1, help="of the batches")
    parser.add_argument("--processes", type=int, default=2, help="which share gradients")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args()
    started = time.time()
    recipe = replace(RECIPE, how=QUICK.unet.how) if args.quick else RECIPE
    images = QUICK.images if args.quick else IMAGES
    job = Further(
        weights=args.weights, out=args.out, work=args.work, seed=args.seed, images=images, recipe=recipe
    )  # fmt: skip
    job.work.mkdir(parents=True, exist_ok=True)
    (job.work / "meeting-unet").unlink(missing_ok=True)
    parts = torch.multiprocessing.spawn(_captions, (job,), nprocs=1, join=False)
    cached(job.work / "latents.npy", lambda: _latents(job))
    parts.join()
    torch.multiprocessing.spawn(_denoise, (args.processes, job), nprocs=args.processes)
    log.info("exported to %s after %.0f min", job.out, (time.time() - started) / 60)


def _latents(job: Further) -> NDArray[np.float32]:
    vae = AutoencoderKL.from_pretrained(job.weights / "vae").float().eval()
    torch.set_num_threads(1)
    return encode(vae, draw_scenes(training_scenes(job.images))).numpy()


def _captions(_: int, job: Further) -> None:
    """The text encoder's states of all captions, and of the empty one."""
    begin(0, 2)
    tokenizer = CLIPTokenizer.from_pretrained(job.weights / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(job.weights / "text_encoder").float().eval()
    said = [captions(scene) for scene in training_scenes(job.images)]
    cached(job.work / "states.npy", lambda: encode_captions(encoder, tokenizer, said))
    cached(job.work / "empty.npy", lambda: encode_captions(encoder, tokenizer, [[""]])[0, 0])


def _denoise(rank: int, processes: int, job: Further) -> None:
    """Fit the denoiser, exporting at every checkpoint."""
    begin(rank, processes, job.work / "meeting-unet")

    def export(unet: torch.nn.Module, _: int) -> None:
        write_unet(unet, job.weights, job.out)

    fit_unet(
        torch.from_numpy(np.load(job.work / "latents.npy")),
        np.load(job.work / "states.npy", mmap_mode="r"),
        np.load(job.work / "empty.npy"),
        job.recipe,
        seed=job.seed,
        start=UNet2DConditionModel.from_pretrained(job.weights / "unet").float(),
        checkpoint=job.work / "unet.pt",
        after_checkpoint=export,
        patches=seen_in_patches(training_scenes(job.images), IMAGE_SIZE // FULL.clip.patch),
    )
    dist.destroy_process_group()


def write_unet(unet: torch.nn.Module, weights: Path, out: Path) -> None:
    """Copy the backbone, unless it is `out` itself, and put the half-precision UNet in the place of its own."""
    if not out.exists():
        shutil.copytree(weights, out)
    new, old = out / ".unet.new", out / ".unet.old"
    shutil.rmtree(new, ignore_errors=True)
    half(unet).save_pretrained(new)
    shutil.copy(weights / "unet" / "config.json", new)  # without the place that the UNet was read from
    for file in new.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    (out / "unet").rename(old)
    new.rename(out / "unet")
    shutil.rmtree(old)


if __name__ == "__main__":
    main()
