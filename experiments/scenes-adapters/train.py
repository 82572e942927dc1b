"""Train the two T2I-Adapters of the Scenes backbone, for edge maps and colour mosaics: see README.md for the command.

Images are drawn here, of another world than the experiment's, so that none of its stimuli is ever trained on. The UNet
is frozen; both adapters are trained at once, each image with one of them or with both. An interrupted run goes on from
its work folder; `--quick` does all of it in seconds, for tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import T2IAdapter
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from backbone_training.export import half
from backbone_training.loop import Draw, Optimisation, fit
from backbone_training.unet import UnetRecipe, draw_conditions, encode_captions, unet_loss
from nd.backbone.loading import Backbone
from nd.config import BackboneConfig
from nd.files import write_text
from nd.generate.souldiffuser.adapters import block_shapes, colour_image, edge_image, weighed
from nd.scenes.captions import captions
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene
from nd.targets.base import Items
from nd.targets.maps import ColourMosaic, EdgeMap

log = logging.getLogger("scenes-adapters")

WORLD_SEED = 3  # of the training images; the embedded experiment's stimuli are of seed 7
NAMES = ("edge", "colour")
AT_ONCE = 256
# Of the images, those with the edge adapter alone, with the colour adapter alone, and with both.
SHARES = (0.3, 0.3, 0.4)
# Maps decoded from voxels are blurred and drawn towards their mean. So are those of so many training images, or the
# adapters would never have seen such.
BLURRED = 0.5
LEAST_CONTRAST = 0.3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained for how long."""

    images: int = 8000
    held_out: int = 256
    # As for Stable Diffusion XL, whose UNet also begins with a block without attention; ResNet blocks in each.
    layers: dict[str, int] = field(default_factory=lambda: {"edge": 2, "colour": 1})
    how: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=2100, batch=32, learning_rate=1e-3, warmup=100, average=0.998, bf16=False
        )
    )
    conditions: UnetRecipe = field(default_factory=lambda: UnetRecipe(empty_share=0.2))


QUICK = Plan(
    images=16,
    held_out=4,
    layers={"edge": 1, "colour": 1},
    how=Optimisation(steps=3, batch=4, learning_rate=1e-3, warmup=1, average=0.9, bf16=False),
)


@dataclass(frozen=True)
class Begin:
    """From where a training goes on, and where it leaves the adapters."""

    seed: int
    checkpoint: Path
    out: Path


@dataclass(frozen=True)
class Scenes:
    """Drawn images with all that a step reads of them."""

    latents: Tensor  # (N, C, h, w) scaled
    states: NDArray[np.float16]  # (N, K, L, D) of their captions
    maps: dict[str, Tensor]  # targets edge (N, 64, 64) and colour (N, 8, 8, 3)


def main(argv: list[str] | None = None) -> None:
    """Train and write both adapters."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the folders edge and colour go")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-adapters"), help="an interrupted run goes on")
    parser.add_argument("--backbone", default="package://scenes", help="the backbone whose UNet they are for")
    parser.add_argument("--image-size", type=int, default=64, help="of the backbone")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the images' seed is fixed")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args(argv)
    plan = QUICK if args.quick else Plan()
    backbone = Backbone(BackboneConfig(weights=args.backbone, image_size=args.image_size))
    drawn = scenes(backbone, range(plan.images))
    empty = encode_captions(backbone.text_encoder, backbone.tokenizer, [[""]])[0, 0]
    torch.manual_seed(args.seed)
    adapters = build(backbone, plan)
    begin = Begin(args.seed, args.work / "adapters.pt", args.out)
    fit_adapters(backbone, adapters, drawn, empty, plan, begin)
    held_out = scenes(backbone, range(plan.images, plan.images + plan.held_out))
    quality = errors(backbone, adapters, held_out, plan)
    write_text(args.out / "quality.json", json.dumps(quality, indent=2) + "\n")
    log.info("wrote %s: %s", args.out, quality)


def scenes(backbone: Backbone, indices: range) -> Scenes:
    """Draw images and read their latents, captions and maps, a few hundred at a time."""
    latents, said, maps = [], [], {name: [] for name in NAMES}
    for start in range(indices.start, indices.stop, AT_ONCE):
        ids = np.arange(start, min(start + AT_ONCE, indices.stop), dtype=np.int32)
        images = np.asarray(draw_many(WORLD_SEED, ids))
        with torch.no_grad():
            latents.append(backbone.encode_images(images).float())
        said.append(
            encode_captions(
                backbone.text_encoder, backbone.tokenizer, [captions(sample_scene(WORLD_SEED, int(i))) for i in ids]
            )
        )
        for name, extract in (("edge", EdgeMap()), ("colour", ColourMosaic())):
            maps[name].append(torch.from_numpy(extract(Items(ids, images))))  # type: ignore[operator]
    return Scenes(torch.cat(latents), np.concatenate(said), {name: torch.cat(found) for name, found in maps.items()})


def build(backbone: Backbone, plan: Plan) -> nn.ModuleDict:
    """Untrained adapters whose features fit the blocks of the backbone's UNet, its middle one included.

    Two kinds of layout: with attention in the finest block (Stable Diffusion 1), or from the second on (XL).
    """
    shapes = block_shapes(backbone.unet, backbone.latent_shape[1])
    xl = len(shapes) == 4 and shapes[0][1:] == shapes[1][1:]
    widths = [width for width, _, _ in (shapes if xl else shapes[:-1])]
    options: dict[str, Any] = {
        "channels": widths,
        "downscale_factor": backbone.config.image_size // shapes[0][1],
        "adapter_type": "full_adapter_xl" if xl else "full_adapter",
    }
    return nn.ModuleDict(
        {
            name: T2IAdapter(in_channels=channels, num_res_blocks=plan.layers[name], **options)
            for name, channels in (("edge", 1), ("colour", 3))
        }
    )


def fit_adapters(
    backbone: Backbone, adapters: nn.ModuleDict, drawn: Scenes, empty: NDArray[np.float16], plan: Plan, begin: Begin
) -> None:
    """Train both on the error of the frozen UNet's noise prediction; written with every checkpoint."""
    signal = backbone.scheduler.alphas_cumprod
    means = {name: values.mean(0, keepdim=True) for name, values in drawn.maps.items()}

    def loss_of_step(draw: Draw) -> Tensor:
        rows = draw.numpy.integers(len(drawn.latents), size=plan.how.batch)
        used = uses(draw.numpy, plan.how.batch)
        maps = {name: decoded_like(drawn.maps[name][rows], means[name], draw.numpy) for name in NAMES}
        added = residuals(backbone, adapters, maps, used)
        condition = draw_conditions(drawn.states[rows], empty, plan.conditions, draw.numpy)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.how.bf16):
            steered = partial(backbone.unet, down_intrablock_additional_residuals=added)
            return unet_loss(steered, drawn.latents[rows], condition, signal, draw.torch)  # type: ignore[arg-type]

    fit(
        adapters,
        loss_of_step,
        plan.how,
        seed=begin.seed,
        checkpoint=begin.checkpoint,
        after_checkpoint=lambda trained, _: export(trained, begin.out),
    )


def export(adapters: nn.Module, out: Path) -> None:
    """Write both in half precision, each a folder that diffusers reads."""
    for name in NAMES:
        half(adapters[name]).save_pretrained(out / name)  # type: ignore[index]
        (out / name / "diffusion_pytorch_model.safetensors").chmod(0o644)  # safetensors writes them private


def uses(rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
    """Return for each adapter the images that it acts on, (B, 1, 1, 1) of 0 and 1."""
    drawn = rng.choice(3, size=batch, p=SHARES)
    acts = {"edge": drawn != 1, "colour": drawn != 0}
    return {name: torch.from_numpy(on.astype(np.float32)).view(-1, 1, 1, 1) for name, on in acts.items()}


def residuals(
    backbone: Backbone, adapters: nn.ModuleDict, maps: dict[str, Tensor], used: dict[str, Tensor]
) -> list[Tensor]:
    """Return what is added in each block: the sum over adapters, on the images that each acts on."""
    side = backbone.config.image_size
    seen = {"edge": edge_image(maps["edge"], side), "colour": colour_image(maps["colour"], side)}
    made = [[used[name] * one for one in adapters[name](seen[name])] for name in NAMES]
    return weighed(made, (1.0, 1.0))


def decoded_like(maps_B: Tensor, mean_1: Tensor, rng: np.random.Generator) -> Tensor:
    """Return maps of which a share is blurred and drawn towards the mean map, each by an amount of its own.

    Args:
        maps_B: (B, K, K) or (B, K, K, 3).
        mean_1: of all training images, (1, ...).
        rng: decides which and how much.
    """
    side, batch = maps_B.shape[1], len(maps_B)
    flat = maps_B.movedim(-1, 1) if maps_B.ndim == 4 else maps_B[:, None]
    small = functional.interpolate(flat, scale_factor=1 / int(rng.choice([2, 4])), mode="area")
    coarse = functional.interpolate(small, (side, side), mode="bilinear")
    coarse = coarse.movedim(1, -1) if maps_B.ndim == 4 else coarse[:, 0]
    one_each = (batch, *[1] * (maps_B.ndim - 1))
    contrast = torch.from_numpy(rng.uniform(LEAST_CONTRAST, 1, one_each).astype(np.float32))
    chosen = torch.from_numpy(rng.random(one_each) < BLURRED)
    return torch.where(chosen, mean_1 + contrast * (coarse - mean_1), maps_B)


@torch.no_grad()
def errors(backbone: Backbone, adapters: nn.ModuleDict, held_out: Scenes, plan: Plan) -> dict[str, float]:
    """Return the weighed error of the noise prediction on images never trained on: without adapters, with one, both."""
    signal, found = backbone.scheduler.alphas_cumprod, {}
    first = np.asarray(held_out.states[:, 0], np.float32)
    for label, on in {"without": (0, 0), "edge": (1, 0), "colour": (0, 1), "both": (1, 1)}.items():
        total, same = 0.0, torch.Generator().manual_seed(0)  # the same noise whatever the adapters
        for part in torch.arange(len(held_out.latents)).split(plan.how.batch):
            used = {name: torch.full((len(part), 1, 1, 1), float(value)) for name, value in zip(NAMES, on, strict=True)}
            added = residuals(backbone, adapters, {name: held_out.maps[name][part] for name in NAMES}, used)
            steered = partial(backbone.unet, down_intrablock_additional_residuals=added)
            loss = unet_loss(
                steered,
                held_out.latents[part],
                torch.from_numpy(first[part.numpy()]),
                signal,
                same,  # type: ignore[arg-type]
            )
            total += float(loss) * len(part)
        found[label] = round(total / len(held_out.latents), 4)
    return found


if __name__ == "__main__":
    main()
