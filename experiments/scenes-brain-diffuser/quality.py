"""How good the networks of Brain-Diffuser on Scenes are: figures, and images to look at.

    python experiments/scenes-brain-diffuser/quality.py --images 64 --out samples.png

Images are of the world that the networks were trained in, but beyond those they were trained on. Targets are the true
ones: what is left is what the networks themselves cost. Rows of the picture, from the top: the image; VDVAE's image of
all its latents; of the 8 layers that are decoded; and Brain-Diffuser's of these and of CLIP's tokens, as published
(strength .75, scale 7.5, text share .4, 50 steps).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nd.backbone.clip import Clip
from nd.backbone.loading import load_backbone
from nd.backbone.pillow import bicubic
from nd.backbone.vdvae.images import to_pixels, to_uint8
from nd.backbone.vdvae.loading import load_vdvae
from nd.config.application import compose
from nd.files import atomic_path
from nd.generate.brain_diffuser import build
from nd.scenes.captions import captions
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene
from nd.targets.base import Items
from nd.targets.clip_features import ClipText, ClipVision, VisionPass
from nd.targets.vdvae import VdvaeLatents

WORLD_SEED, FIRST = 1, 50_000  # of the images; the first 20,000 were trained on
SHOWN = 8


def main() -> None:
    """Print the figures and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="that the figures are of")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png")
    args = parser.parse_args()
    cfg, cpu = compose(["method=brain_diffuser"]), torch.device("cpu")
    ids = np.arange(FIRST, FIRST + args.images, dtype=np.int32)
    images = np.asarray(draw_many(WORLD_SEED, ids))
    items = Items(ids, images, [captions(sample_scene(WORLD_SEED, int(i))) for i in ids])

    backbone, target = load_backbone(cfg.backbone), cfg.decoding("vdvae").target
    clip = Clip(cfg.decoding("clip_vision").target.clip, cpu)
    extract = {
        "vdvae": VdvaeLatents(backbone, target),
        "clip_vision": ClipVision(VisionPass(clip)),
        "clip_text": ClipText(clip, cfg.decoding("clip_text").target.max_captions),
    }
    features = {name: torch.from_numpy(one(items)) for name, one in extract.items()}
    model = load_vdvae(target.vdvae)
    with torch.inference_mode():
        small = to_pixels(images, model.shape.image_size).permute(0, 2, 3, 1).round().byte().numpy()
        latents = model.posterior(model.encode(to_pixels(images, model.shape.image_size)))
        whole = to_uint8(model.picture(model.decode(latents))).numpy()
        coarse = to_uint8(model.picture(model.decode(model.split(features["vdvae"])))).numpy()
    found = {"all layers": whole, f"the {target.vdvae_layers} decoded": coarse, "mean image": small.mean(0)}
    shown = ", ".join(f"{name} {psnr(made, small):.1f} dB" for name, made in found.items())
    print(f"VDVAE at {model.shape.image_size} px, PSNR: {shown}")

    generator = build([cfg], cpu)
    generator.use(generator.plan_for([SHOWN]))
    (made,) = generator(ids[:SHOWN].tolist(), {name: values[:SHOWN] for name, values in features.items()})
    made_BHW3 = made.images[:, 0]
    first = bicubic(coarse[:SHOWN], cfg.backbone.image_size)
    for what, shown in (("first guess", first), ("Brain-Diffuser", made_BHW3)):
        print(f"{what}: PixCorr {correlation(shown, images[:SHOWN]):.3f}, PSNR {psnr(shown, images[:SHOWN]):.1f} dB")
    rows = [images[:SHOWN], bicubic(whole[:SHOWN], cfg.backbone.image_size), first, made_BHW3]
    sheet = Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))
    with atomic_path(args.out) as temporary:
        sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(temporary, format="png")


def psnr(found: NDArray[np.generic], true: NDArray[np.uint8]) -> float:
    """Return the mean peak signal-to-noise ratio of images in bytes, in dB."""
    errors = np.square(found.astype(float) - true).reshape(len(true), -1).mean(1)
    return float((10 * np.log10(255**2 / errors)).mean())


def correlation(found: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    """Return the mean correlation of images over their pixels and colours."""
    pairs = zip(found.reshape(len(found), -1), true.reshape(len(true), -1), strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


if __name__ == "__main__":
    main()
