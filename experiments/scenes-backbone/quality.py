"""Quality figures and contact sheets of a Scenes backbone, from its exported folder alone.

Everything is measured on held-out pictures (indices from HELD_OUT on), which training never draws.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from backbone_training.clip import embed_images, embed_texts, tokenize
from backbone_training.unet import encode_captions, generate
from backbone_training.vae import decode, encode, psnr_db
from nd.metrics.correlation import pixcorr
from nd.scenes.captions import captions
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene

log = logging.getLogger("quality")

WORLD_SEED = 1
HELD_OUT = 10_000_000
N_PICTURES = 500
AMONG = 50  # captions of which one is right
GUIDANCE, STEPS = 5.0, 20
STRENGTH = 0.75  # of image-to-image: the share of the steps that is sampled again


@dataclass(frozen=True)
class Backbone:
    """The parts, in float32."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    clip: CLIP

    @classmethod
    def read(cls, folder: Path) -> Backbone:
        """From the exported folder."""
        return cls(
            AutoencoderKL.from_pretrained(folder / "vae").float().eval(),
            UNet2DConditionModel.from_pretrained(folder / "unet").float().eval(),
            CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval(),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            open_clip.create_model(f"local-dir:{(folder / 'image_tower').resolve()}").eval(),
        )

    def states(self, said: list[list[str]]) -> tuple[Tensor, Tensor]:
        """Mean hidden states of each picture's captions (N, L, D) and those of the empty caption (L, D)."""
        states_NKLD = encode_captions(self.encoder, self.tokenizer, said)
        empty_LD = encode_captions(self.encoder, self.tokenizer, [[""]])[0, 0]
        return torch.from_numpy(states_NKLD.astype(np.float32).mean(1)), torch.from_numpy(empty_LD).float()


def matched(clip: CLIP, tokenizer: CLIPTokenizer, images_NHW3: NDArray[np.uint8], said: list[str]) -> float:
    """Share of the pictures whose own caption is the nearest among AMONG, in consecutive groups of that many."""
    image_NE, text_NE = embed_images(clip, images_NHW3), embed_texts(clip, tokenize(tokenizer, [said])[0])
    hits = [
        (image_NE[i : i + AMONG] @ text_NE[i : i + AMONG].T).argmax(1) == torch.arange(AMONG)
        for i in range(0, len(said), AMONG)
    ]
    return float(torch.cat(hits).float().mean())


@dataclass(frozen=True)
class Pictures:
    """What is compared: drawn, rebuilt by the autoencoder, made from the first caption, made image to image."""

    seen: NDArray[np.uint8]
    rebuilt: NDArray[np.uint8]
    from_text: NDArray[np.uint8]
    again: NDArray[np.uint8]
    first: list[str]
    latent_deviation: float


def make_pictures(backbone: Backbone, n_generated: int) -> Pictures:
    """Draw the held-out pictures and make the others from them and their captions."""
    indices = range(HELD_OUT, HELD_OUT + N_PICTURES)
    seen_NHW3 = draw_many(WORLD_SEED, indices)
    said = [captions(sample_scene(WORLD_SEED, i)) for i in indices]
    latents_NChw = encode(backbone.vae, seen_NHW3)
    one_NLD, empty_LD = backbone.states([group[:1] for group in said[:n_generated]])
    mean_NLD, _ = backbone.states(said[:n_generated])
    sample = partial(generate, backbone.unet, empty_LD=empty_LD, guidance=GUIDANCE, steps=STEPS, seed=0)
    again_NChw = sample(condition_NLD=mean_NLD, start_NChw=latents_NChw[:n_generated], strength=STRENGTH)
    return Pictures(
        seen_NHW3,
        decode(backbone.vae, latents_NChw),
        decode(backbone.vae, sample(condition_NLD=one_NLD)),
        decode(backbone.vae, again_NChw),
        [group[0] for group in said],
        float(latents_NChw.std()),
    )


def figures(backbone: Backbone, made: Pictures) -> dict[str, float]:
    """The numbers of quality.json."""
    n = len(made.from_text)
    share = partial(matched, backbone.clip, backbone.tokenizer)
    return {
        "vae_psnr_db": psnr_db(made.seen, made.rebuilt),
        "latent_deviation": made.latent_deviation,
        "real_matched_among_50": share(made.seen, made.first),
        "generated_matched_among_50": share(made.from_text, made.first[:n]),
        "image_to_image_matched_among_50": share(made.again, made.first[:n]),
        "image_to_image_pixcorr": float(pixcorr(unit(made.again), unit(made.seen[:n])).mean()),
        "generated": n,
        "guidance": GUIDANCE,
        "steps": STEPS,
        "strength": STRENGTH,
        "unet_parameters": sum(p.numel() for p in backbone.unet.parameters()),
    }


def unit(images_NHW3: NDArray[np.uint8]) -> Tensor:
    """Pictures (N, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(images_NHW3).permute(0, 3, 1, 2).float() / 255


def sheet(path: Path, rows: list[NDArray[np.uint8]]) -> None:
    """A contact sheet, twice as large: each row is drawn, rebuilt, from its first caption, image to image."""
    page = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(page).resize((2 * page.shape[1], 2 * page.shape[0]), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Measure and write quality.json beside the sheets."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("nd/weights/scenes"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--generated", type=int, default=200, help="pictures to generate, a multiple of 50")
    args = parser.parse_args()
    backbone = Backbone.read(args.weights)
    made = make_pictures(backbone, args.generated)
    rows = [made.seen, made.rebuilt, made.from_text, made.again]
    sheet(args.out / "samples.png", [row[:12] for row in rows])
    size = sum(f.stat().st_size for f in args.weights.rglob("*.safetensors")) / 1e6
    numbers = figures(backbone, made) | {"megabytes": size}
    (args.out / "samples.txt").write_text("\n".join(made.first[:12]) + "\n", encoding="utf-8")
    text = json.dumps(numbers, indent=2, sort_keys=True) + "\n"
    (args.out / "quality.json").write_text(text, encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    main()
