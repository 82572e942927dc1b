"""Make what Brain-Diffuser needs on Scenes beside the backbone: a CLIP model, a VDVAE and a dual-guided UNet.

The CLIP model is the backbone's image tower in transformers' layout, number for number. The UNet keeps the backbone's
residual blocks as they are; each of its two branches begins with the backbone's transformers and is trained on, that of
the image on CLIP's image tokens, that of the text on its text tokens. Stages resume from their files in the work
folder. `--quick` runs all of them for a few steps. See README.md for the command.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # backbone_training

from backbone_training.loop import Draw, Optimisation, fit
from backbone_training.vdvae import fit_vdvae
from nd.backbone.clip import Clip
from nd.backbone.clip_pictures import MEAN, STD
from nd.backbone.image_tower import load_clip
from nd.backbone.loading import Backbone
from nd.backbone.vdvae.loading import save_vdvae
from nd.backbone.vdvae.shape import VdvaeShape
from nd.backbone.versatile import IMAGE, VersatileBackbone, dual_unet, joined
from nd.backbone.weights import local_folder
from nd.config import BackboneConfig
from nd.scenes.captions import captions
from nd.scenes.draw import draw_many
from nd.scenes.scene import sample_scene
from nd.targets.base import Items
from nd.targets.clip_features import ClipText, ClipVision, VisionPass

log = logging.getLogger("scenes-brain-diffuser")

WORLD_SEED = 1  # of the training images; the embedded experiment's stimuli are of seed 7
EMPTY_SHARE = 0.1  # of conditions, for classifier-free guidance
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
    vdvae=Optimisation(steps=6000, batch=32, learning_rate=1e-3, warmup=200, average=0.999),
    unet=Optimisation(steps=3000, batch=32, learning_rate=5e-4, warmup=200, average=0.999),
)  # fmt: skip
QUICK = Plan(
    images=24,
    shape=VdvaeShape(width=8, zdim=2, n_mixtures=2, image_size=8, encoder="8x1,8d2,4x1,4d4,1x1", decoder="1x1,4m1,8m4"),
    vdvae=Optimisation(steps=3, batch=4, learning_rate=1e-3, warmup=1, average=0.9),
    unet=Optimisation(steps=3, batch=4, learning_rate=1e-4, warmup=1, average=0.9),
)


def main(argv: list[str] | None = None) -> None:
    """Run the stages."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where clip/, versatile/ and vdvae.safetensors go")
    parser.add_argument("--backbone", default="package://scenes", help="the Scenes backbone")
    parser.add_argument("--image-size", type=int, default=64, help="of the backbone")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes-brain-diffuser"), help="files of the stages")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; the images' seed is fixed")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args(argv)
    plan, tower = QUICK if args.quick else FULL, f"{args.backbone}/image_tower"
    config = BackboneConfig(weights=args.backbone, image_tower=tower, image_size=args.image_size)
    images = draw_many(WORLD_SEED, range(plan.images))
    said = [captions(sample_scene(WORLD_SEED, i)) for i in range(plan.images)]
    args.work.mkdir(parents=True, exist_ok=True)

    clip = export_clip(config, args.out / "clip")
    vdvae = fit_vdvae(images, plan.shape, plan.vdvae, seed=args.seed, checkpoint=args.work / "vdvae.pt")
    save_vdvae(args.out / "vdvae.safetensors", vdvae)
    fit_dual(config, clip, images, said, plan.unet, args.seed, args.work / "dual.pt", args.out / "versatile")
    log.info("exported to %s", args.out)


# ---- CLIP -----------------------------------------------------------------------------------------------------------


def export_clip(config: BackboneConfig, out: Path) -> Clip:
    """Write the backbone's image tower and text encoder as one transformers CLIPModel; returns it read back."""
    model, folder = load_clip(config.image_tower).float().eval(), local_folder(config.weights)
    assert folder is not None
    words = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    length, vision = model.positional_embedding.shape[0], model.visual
    text = {name: words[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {"max_position_embeddings": length, **sizes_of(model.transformer.resblocks)}
    image = {"image_size": vision.image_size[0], "patch_size": vision.conv1.kernel_size[0]}
    image |= sizes_of(vision.transformer.resblocks)
    made = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=vision.proj.shape[1]))
    made.load_state_dict(clip_weights(model), strict=True)
    shutil.copytree(folder / "tokenizer", out, dirs_exist_ok=True)
    made.save_pretrained(out)
    return Clip(str(out), torch.device("cpu"))


def sizes_of(blocks: Any) -> dict[str, Any]:
    """Return the sizes of a transformer by transformers' names."""
    first = blocks[0]
    return {
        "hidden_size": first.mlp.c_fc.in_features, "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks), "num_attention_heads": first.attn.num_heads, "hidden_act": "gelu",
    }  # fmt: skip


def clip_weights(model: Any) -> dict[str, Tensor]:
    """Return open_clip's weights by transformers' names, for images normalised as OpenAI's.

    The tower was trained on (p - .5) / .5 of pixels p in [0, 1], transformers' model sees (p - mean) / std: the patch
    convolution takes the difference in its weights, and in the patches' positions where it would need a bias.
    """
    vision, scale = model.visual, torch.tensor(STD).view(1, 3, 1, 1) / 0.5
    shift = (torch.tensor(MEAN).view(1, 3, 1, 1) - 0.5) / 0.5
    kernel, places = vision.conv1.weight.detach(), vision.positional_embedding.detach().clone()
    places[1:] += (kernel * shift).sum(dim=(1, 2, 3))
    named = {
        "vision_model.embeddings.class_embedding": vision.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": kernel * scale,
        "vision_model.embeddings.position_embedding.weight": places,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        "visual_projection.weight": vision.proj.T,
        "text_projection.weight": model.text_projection.T,
        "logit_scale": model.logit_scale,
    }
    norms = {
        "vision_model.pre_layrnorm": vision.ln_pre, "vision_model.post_layernorm": vision.ln_post,
        "text_model.final_layer_norm": model.ln_final,
    }  # fmt: skip
    named |= {f"{name}.{k}": v for name, norm in norms.items() for k, v in norm.state_dict().items()}
    for half, transformer in (("vision_model", vision.transformer), ("text_model", model.transformer)):
        for i, block in enumerate(transformer.resblocks):
            named |= block_weights(f"{half}.encoder.layers.{i}.", block)
    return {name: value.detach().clone().contiguous() for name, value in named.items()}


def block_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    """Return one block's weights; open_clip keeps query, key and value in one matrix."""
    parts = {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2, "self_attn.out_proj": block.attn.out_proj}
    parts |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
    named = {f"{prefix}{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    for kind, packed in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
        for letter, value in zip("qkv", packed.chunk(3), strict=True):
            named[f"{prefix}self_attn.{letter}_proj.{kind}"] = value
    return named


# ---- the dual-guided UNet -------------------------------------------------------------------------------------------


def fit_dual(
    config: BackboneConfig,
    clip: Clip,
    images: NDArray[np.uint8],
    said: list[list[str]],
    how: Optimisation,
    seed: int,
    checkpoint: Path,
    out: Path,
) -> None:
    """Train the branches on cached latents and tokens, and write the folder with both in one."""
    backbone = Backbone(config)
    with torch.no_grad():
        z_NChw = torch.cat([backbone.encode_images(images[part]).float() for part in parts(len(images))])
    seen, told = tokens_of(clip, images, said)
    empty_image, empty_text = VersatileBackbone(config, config.weights, clip).empty_conditions
    state = backbone.unet.state_dict()
    unet = dual_unet(backbone.unet.config)
    unet.load_state_dict(joined(state, state))
    unet.requires_grad_(False)
    for name, value in unet.named_parameters():
        value.requires_grad_(".transformers." in name)
    unet.mixing.n_image = seen.shape[1]
    signal = backbone.scheduler.alphas_cumprod

    def loss_of_step(draw: Draw) -> Tensor:
        rows = torch.from_numpy(draw.numpy.integers(len(z_NChw), size=how.batch))
        t = torch.randint(len(signal), (how.batch,), generator=draw.torch)
        noise = torch.randn(z_NChw[rows].shape, generator=draw.torch)
        abar = signal[t].view(-1, 1, 1, 1)
        without = torch.from_numpy(draw.numpy.random(how.batch) < EMPTY_SHARE).view(-1, 1, 1)
        tokens = [
            torch.where(without, empty, values[rows].float())
            for values, empty in ((seen, empty_image), (told, empty_text))
        ]
        ends = draw.numpy.random() < ENDS_SHARE
        unet.mixing.share = float(draw.numpy.integers(2)) if ends else float(draw.numpy.random())
        noisy = abar.sqrt() * z_NChw[rows] + (1 - abar).sqrt() * noise
        predicted = unet(noisy, t, encoder_hidden_states=torch.cat(tokens, dim=1)).sample
        return functional.mse_loss(predicted, noise)

    fit(unet, loss_of_step, how, seed=seed, checkpoint=checkpoint)
    export(backbone, unet, out)


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


def export(backbone: Backbone, unet: Any, out: Path) -> None:
    """Write a folder in the layout of one that diffusers saved with both branches, in half precision."""
    folder = local_folder(backbone.config.weights)
    assert folder is not None
    for part in ("vae", "scheduler"):
        shutil.copytree(folder / part, out / part, dirs_exist_ok=True)
    unet.register_to_config(dual_cross_attention=True)
    unet.half().save_pretrained(out / IMAGE)


if __name__ == "__main__":
    main()
