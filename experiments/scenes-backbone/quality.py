"""Quality figures and a contact sheet of a Scenes backbone, from its exported folder alone.

Everything is measured on held-out scenes (indices from HELD_OUT on), which training never draws. An image is matched to
its caption among 50 that share the background and the colours of its scene and differ in shape, number, size or place.

Shapes: N images, M captions of each to choose from, L tokens, D text width, E embedding, C h w latent.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from nd.scenes.draw import draw_scenes
from nd.scenes.scene import Scene, rearranged, sample_scene
from nd.scenes.shapes import SHAPES

log = logging.getLogger("quality")

WORLD_SEED = 1
HELD_OUT = 10_000_000
N_IMAGES = 500
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

    def states(self, said: Sequence[Sequence[str]]) -> Tensor:
        """Mean hidden states of each image's captions (N, L, D)."""
        states_NKLD = encode_captions(self.encoder, self.tokenizer, said)
        return torch.from_numpy(states_NKLD.astype(np.float32).mean(1))

    def sample(self, said: Sequence[Sequence[str]], start_NChw: Tensor | None = None) -> NDArray[np.uint8]:
        """Images from the captions' mean states: from noise, or from latents at STRENGTH."""
        strength = 1.0 if start_NChw is None else STRENGTH
        options = {"guidance": GUIDANCE, "steps": STEPS, "seed": 0, "start_NChw": start_NChw, "strength": strength}
        empty_LD = self.states([[""]])[0]
        return decode(self.vae, generate(self.unet, self.states(said), empty_LD, **options))

    def texts(self, said: Sequence[Sequence[str]]) -> Tensor:
        """Unit-length embedding of each group of captions: the mean over the group (N, E)."""
        ids_NKL = tokenize(self.tokenizer, said)
        text_NKE = embed_texts(self.clip, ids_NKL.flatten(0, 1)).unflatten(0, ids_NKL.shape[:2])
        return torch.nn.functional.normalize(text_NKE.mean(1), dim=-1)


def confusable(scene: Scene) -> list[str]:
    """AMONG captions: the scene's first one, then those of scenes with the same background and colours."""
    own, variant = [captions(scene)[0]], 1
    while len(own) < AMONG:
        other = captions(rearranged(scene, variant))[0]
        own += [other] if other not in own else []
        variant += 1
    return own


def reshaped(scene: Scene) -> list[list[str]]:
    """Captions of a scene of one object, were the object of each of the shapes."""
    (thing,) = scene.things
    return [captions(replace(scene, things=(replace(thing, shape=shape),))) for shape in SHAPES]


def share_matched(
    backbone: Backbone, images_NHW3: NDArray[np.uint8], choices: list[list[list[str]]], right: list[int]
) -> float:
    """Share of the images whose nearest group of captions, among their own choices, is the right one."""
    image_NE = embed_images(backbone.clip, images_NHW3)
    nearest = [int((backbone.texts(said) @ image_E).argmax()) for said, image_E in zip(choices, image_NE, strict=True)]
    return float(np.mean(np.array(nearest) == np.array(right)))


@dataclass(frozen=True)
class Images:
    """What is compared: drawn, rebuilt by the autoencoder, made from the first caption, made image to image."""

    seen: NDArray[np.uint8]
    rebuilt: NDArray[np.uint8]
    from_text: NDArray[np.uint8]
    again: NDArray[np.uint8]
    latent_deviation: float


def make_images(backbone: Backbone, scenes: list[Scene], n_generated: int) -> Images:
    """Draw the held-out scenes and make the others from them and their captions."""
    seen_NHW3 = draw_scenes(scenes)
    said = [captions(scene) for scene in scenes[:n_generated]]
    latents_NChw = encode(backbone.vae, seen_NHW3)
    return Images(
        seen_NHW3,
        decode(backbone.vae, latents_NChw),
        backbone.sample([group[:1] for group in said]),
        backbone.sample(said, latents_NChw[:n_generated]),
        float(latents_NChw.std()),
    )


def figures(backbone: Backbone, scenes: list[Scene], made: Images) -> dict[str, float]:
    """Figures of all held-out scenes."""
    n = len(made.from_text)
    choices = [[[said] for said in confusable(scene)] for scene in scenes[:n]]
    matched = partial(share_matched, backbone, choices=choices, right=[0] * n)
    return {
        "vae_psnr_db": psnr_db(made.seen, made.rebuilt),
        "latent_deviation": made.latent_deviation,
        "drawn_matched_among_50": matched(made.seen[:n]),
        "generated_matched_among_50": matched(made.from_text),
        "image_to_image_matched_among_50": matched(made.again),
        "image_to_image_pixcorr": float(pixcorr(unit(made.again), unit(made.seen[:n])).mean()),
    }


def shape_figures(backbone: Backbone, n: int) -> dict[str, float]:
    """Share of scenes of one object whose shape the image tower tells, drawn and made image to image."""
    many = (sample_scene(WORLD_SEED, HELD_OUT + N_IMAGES + i) for i in range(20 * n))
    scenes = [scene for scene, _ in zip((s for s in many if len(s.things) == 1), range(n), strict=False)]
    seen_NHW3, said = draw_scenes(scenes), [captions(scene) for scene in scenes]
    again_NHW3 = backbone.sample(said, encode(backbone.vae, seen_NHW3))
    right = [SHAPES.index(scene.things[0].shape) for scene in scenes]
    told = partial(share_matched, backbone, choices=[reshaped(scene) for scene in scenes], right=right)
    return {"drawn_shape_recognised": told(seen_NHW3), "image_to_image_shape_recognised": told(again_NHW3)}


def unit(images_NHW3: NDArray[np.uint8]) -> Tensor:
    """Images (N, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(images_NHW3).permute(0, 3, 1, 2).float() / 255


def sheet(path: Path, rows: list[NDArray[np.uint8]]) -> None:
    """A contact sheet, twice as large: each row is drawn, rebuilt, from its first caption, image to image."""
    page = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(page).resize((2 * page.shape[1], 2 * page.shape[0]), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Measure and write quality.json beside the sheet."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("nd/weights/scenes"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--generated", type=int, default=200, help="images to generate for each figure")
    args = parser.parse_args()
    backbone = Backbone.read(args.weights)
    scenes = [sample_scene(WORLD_SEED, i) for i in range(HELD_OUT, HELD_OUT + N_IMAGES)]
    made = make_images(backbone, scenes, args.generated)
    sheet(args.out / "samples.png", [row[:12] for row in (made.seen, made.rebuilt, made.from_text, made.again)])
    settings = {"generated": args.generated, "guidance": GUIDANCE, "steps": STEPS, "strength": STRENGTH}
    size = sum(f.stat().st_size for f in args.weights.rglob("*.safetensors")) / 1e6
    parameters = sum(p.numel() for p in backbone.unet.parameters())
    numbers = figures(backbone, scenes, made) | shape_figures(backbone, args.generated) | settings
    numbers |= {"megabytes": size, "unet_parameters": parameters}
    said = [captions(scene)[0] for scene in scenes[:12]]
    (args.out / "samples.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    text = json.dumps(numbers, indent=2, sort_keys=True) + "\n"
    (args.out / "quality.json").write_text(text, encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    main()
