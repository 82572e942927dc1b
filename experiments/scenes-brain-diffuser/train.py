"""Make what Brain-Diffuser needs on Scenes beside the backbone: a VDVAE and a dual-guided UNet.

Its CLIP model is the backbone's image tower, as `target.clip` reads a backbone. The UNet keeps the backbone's residual
blocks and self-attention as they are; the cross-attention of its two branches and what follows it are trained, those
of the image on CLIP's image tokens, those of the text on its text tokens. Stages resume from their files in the work
folder; `--export-only` writes what these hold; `--unet-only` leaves out the VDVAE, which the backbone does not change.
`--quick` runs all of it for a few steps. README.md has the command.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from backbone_training.export import forget_origin
from backbone_training.loop import Draw, LossOfStep, Optimisation, fit
from backbone_training.vdvae import fit_vdvae
from nd.backbone.clip import Clip
from nd.backbone.loading import Backbone
from nd.backbone.vdvae.loading import save_vdvae
from nd.backbone.vdvae.shape import VdvaeShape
from nd.backbone.versatile import FILES, IMAGE, VersatileBackbone, dual_unet, joined
from nd.backbone.weights import INDEX, SHARED, local_folder
from nd.config import BackboneConfig
from nd.files import PACKAGE, write_json
from nd.scenes.captions import captions
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene
from nd.targets.base import Items
from nd.targets.clip_features import ClipText, ClipVision, VisionPass

log = logging.getLogger("scenes-brain-diffuser")

WORLD_SEED = 1  # of the training images; the embedded experiment's stimuli are of seed 7
EMPTY_SHARE = 0.1  # of conditions, for classifier-free guidance
TRAINED = (".norm2.", ".attn2.", ".norm3.", ".ff.")  # of each branch: cross-attention, and what follows it
BLURRED = 0.02  # directions of CLIP's projection that are left out of its inverse, as a share of the strongest
ENDS_SHARE = 0.5  # of steps in which one branch has the whole share, so that each also stands alone


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained for how long."""

    images: int
    shape: VdvaeShape
    vdvae: Optimisation
    unet: Optimisation


FULL = Plan(
    images=20_000,
    shape=VdvaeShape(
        width=48, bottleneck=0.5, zdim=8, no_bias_above=16, n_mixtures=3, image_size=32,
        encoder="32x2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1", decoder="1x1,4m1,4x2,8m4,8x3,16m8,16x3,32m16,32x1",
    ),
    vdvae=Optimisation(steps=3000, batch=32, learning_rate=1e-3, warmup=200, average=0.999),
    unet=Optimisation(steps=1000, batch=32, learning_rate=5e-4, warmup=100, average=0.998),
)  # fmt: skip
QUICK = Plan(
    images=24,
    shape=VdvaeShape(width=8, zdim=2, n_mixtures=2, image_size=8, encoder="8x1,8d2,4x1,4d4,1x1", decoder="1x1,4m1,8m4"),
    vdvae=Optimisation(steps=3, batch=4, learning_rate=1e-3, warmup=1, average=0.9),
    unet=Optimisation(steps=3, batch=4, learning_rate=1e-4, warmup=1, average=0.9),
)


def main(argv: list[str] | None = None) -> None:
    """Run the stages, or write what they made."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where versatile/ and vdvae.safetensors go")
    parser.add_argument("--backbone", default="package://scenes", help="the Scenes backbone")
    parser.add_argument("--image-size", type=int, default=64, help="of the backbone")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-brain-diffuser"), help="files of the stages")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the images' seed is fixed")
    parser.add_argument("--export-only", action="store_true", help="write what the stages' files hold; train nothing")
    parser.add_argument("--unet-only", action="store_true", help="leave the VDVAE out")
    parser.add_argument("--whole", action="store_true", help="a UNet's folder that diffusers knows, nothing shared")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args(argv)
    plan, tower = QUICK if args.quick else FULL, f"{args.backbone}/image_tower"
    config = BackboneConfig(weights=args.backbone, image_tower=tower, image_size=args.image_size)
    stages = {name: args.work / f"{name}.pt" for name in ("vdvae", "dual")[args.unet_only :]}
    if args.export_only:
        plan = replace(plan, images=0, vdvae=replace(plan.vdvae, steps=0), unet=replace(plan.unet, steps=0))
        if absent := [str(file) for file in stages.values() if not file.is_file()]:
            parser.error(f"--export-only: no {' and no '.join(absent)}; they are written by training")
    images = draw_many(WORLD_SEED, range(plan.images))
    said = [captions(sample_scene(WORLD_SEED, i)) for i in range(plan.images)]
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)

    if not args.unet_only:
        vdvae = fit_vdvae(images, plan.shape, plan.vdvae, seed=args.seed, checkpoint=stages["vdvae"])
        save_vdvae(args.out / "vdvae.safetensors", vdvae)
    backbone, clip = Backbone(config), Clip(args.backbone, torch.device("cpu"))
    unet = dual_of(backbone, clip)
    # Latents and tokens of all images take minutes, and nothing asks for them where nothing is trained.
    loss = denoising(backbone, clip, unet, images, said, plan.unet.batch) if plan.images else None
    fit(unet, loss, plan.unet, seed=args.seed, checkpoint=stages["dual"])
    export(backbone, unet, args.out / "versatile", whole=args.whole)
    log.info("exported to %s", args.out)


# ---- the dual-guided UNet -------------------------------------------------------------------------------------------


def dual_of(backbone: Backbone, clip: Clip) -> Any:
    """Return a UNet whose branches begin as the backbone's transformers, told of CLIP's tokens; part of it is trained.

    The backbone is conditioned on the text encoder's hidden states h, a branch on W h / |W e|, e of the end token: keys
    and values undo W, and the length of the empty caption's end stands for all lengths. Images lie in the same space,
    so that their branch begins there too.
    """
    state = backbone.unet.state_dict()
    unet = dual_unet(backbone.unet.config)
    unet.load_state_dict(joined(state, state))
    unet.requires_grad_(False)
    _, end = clip.encode_text([""])
    undone = torch.linalg.pinv(clip.text.text_projection.weight, rtol=BLURRED) * end.norm()
    for name, value in unet.named_parameters():
        value.requires_grad_(is_trained(name))
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            value.data = value.data @ undone
    unet.mixing.n_image = clip.vision_shape[0]
    return unet


def is_trained(name: str) -> bool:
    """Whether a parameter of the dual UNet is trained; the others are the backbone's, in both branches."""
    return ".transformers." in name and any(part in name for part in TRAINED)


def denoising(
    backbone: Backbone, clip: Clip, unet: Any, images: NDArray[np.uint8], said: list[list[str]], batch: int
) -> LossOfStep:
    """Return the loss of a step on cached latents and tokens.

    Args:
        backbone: whose latents are noised.
        clip: whose tokens are the conditions.
        unet: of ``dual_of``.
        images: (N, H, W, 3) uint8.
        said: captions of each.
        batch: images of a step.
    """
    with torch.no_grad():
        z_NChw = torch.cat([backbone.encode_images(images[part]).float() for part in parts(len(images))])
    seen, told = tokens_of(clip, images, said)
    empty_image, empty_text = VersatileBackbone(backbone.config, backbone.config.weights, clip).empty_conditions
    signal = backbone.scheduler.alphas_cumprod

    def loss_of_step(draw: Draw) -> Tensor:
        rows = torch.from_numpy(draw.numpy.integers(len(z_NChw), size=batch))
        t = torch.randint(len(signal), (batch,), generator=draw.torch)
        noise = torch.randn(z_NChw[rows].shape, generator=draw.torch)
        abar = signal[t].view(-1, 1, 1, 1)
        without = torch.from_numpy(draw.numpy.random(batch) < EMPTY_SHARE).view(-1, 1, 1)
        tokens = [
            torch.where(without, empty, values[rows].float())
            for values, empty in ((seen, empty_image), (told, empty_text))
        ]
        ends = draw.numpy.random() < ENDS_SHARE
        unet.mixing.share = float(draw.numpy.integers(2)) if ends else float(draw.numpy.random())
        noisy = abar.sqrt() * z_NChw[rows] + (1 - abar).sqrt() * noise
        predicted = unet(noisy, t, encoder_hidden_states=torch.cat(tokens, dim=1)).sample
        return functional.mse_loss(predicted, noise)

    return loss_of_step


def parts(n: int, size: int = 256) -> list[slice]:
    """Return slices of at most `size` that cover `n` rows."""
    return [slice(start, start + size) for start in range(0, n, size)]


def tokens_of(clip: Clip, images: NDArray[np.uint8], said: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Return CLIP's tokens of all images and captions, (N, T, D) float16 each: targets clip_vision and clip_text."""
    extractors, found = (ClipVision(VisionPass(clip)), ClipText(clip, 0)), ([], [])
    for part in parts(len(images)):
        items = Items(np.arange(len(images), dtype=np.int32)[part], images[part], said[part])
        for extractor, rows in zip(extractors, found, strict=True):
            rows.append(torch.from_numpy(extractor(items)).half())
    return torch.cat(found[0]), torch.cat(found[1])


def export(backbone: Backbone, unet: Any, out: Path, *, whole: bool = False) -> None:
    """Write a folder that `method.versatile` takes, in half precision.

    Args:
        backbone: whose VAE, schedule and residual blocks the UNet has.
        unet: of ``dual_unet``.
        out: the folder.
        whole: with everything, in the layout of a folder that diffusers saved with both branches; else what was trained
            alone, and where the backbone lies, from which the rest is read.
    """
    folder = local_folder(backbone.config.weights)
    assert folder is not None
    unet.register_to_config(dual_cross_attention=True)
    if whole:
        for part in ("vae", "scheduler"):
            shutil.copytree(folder / part, out / part, dirs_exist_ok=True)
        unet.half().save_pretrained(out / IMAGE)
        forget_origin(out / IMAGE / "config.json")
        return
    unet.save_config(out / IMAGE)
    forget_origin(out / IMAGE / "config.json")
    state = {name: value.half().contiguous() for name, value in unet.state_dict().items() if is_trained(name)}
    save_file(state, out / IMAGE / FILES[0], metadata={"format": "pt"})
    given = backbone.config.weights
    write_json(out / INDEX, {SHARED: given if given.startswith(PACKAGE) else str(folder.resolve())})


if __name__ == "__main__":
    main()
