"""Fit the denoiser of a small backbone: noise prediction on scaled latents, given the text encoder's hidden states.

Shapes: N images, K captions of each, B batch, C h w latent channels, rows and columns, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from backbone_training.clip import tokenize
from backbone_training.loop import AfterCheckpoint, Draw, Optimisation, fit
from backbone_training.patches import Patches, PatchHeads


@dataclass(frozen=True, kw_only=True)
class UnetRecipe:
    """Sizes and training of the denoiser. Attention to the text at all resolutions but the finest."""

    widths: tuple[int, ...] = (40, 80, 112)
    layers_per_block: int = 1
    heads: int = 4
    norm_groups: int = 8
    empty_share: float = 0.1  # classifier-free guidance needs the unconditional prediction too
    mean_share: float = 0.5  # of the others: the mean over several captions, which is what decoding predicts
    # Weight of a second task: to tell from its features at half the resolution what each patch of the clean image
    # shows. A denoiser that knows what it draws learns sooner (Yu et al. 2025, "Representation alignment for
    # generation", whose features of another network are here what the drawing program knows).
    patches_weight: float = 0.0
    how: Optimisation = field(
        default_factory=lambda: Optimisation(steps=9000, batch=64, learning_rate=1e-3, warmup=300, average=0.999)
    )


def sd_scheduler() -> DDIMScheduler:
    """Stable Diffusion v1's noise schedule (its scheduler_config.json)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="epsilon",
    )


def build_unet(recipe: UnetRecipe, latent_size: int, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """An untrained denoiser."""
    attending = len(recipe.widths) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
        cross_attention_dim=text_width,
        attention_head_dim=recipe.heads,  # as in Stable Diffusion v1, diffusers reads this as the number of heads
        norm_num_groups=recipe.norm_groups,
    )


def fit_unet(
    latents_NChw: Tensor,
    states_NKLD: NDArray[np.float16],
    empty_LD: NDArray[np.float16],
    recipe: UnetRecipe,
    *,
    seed: int,
    start: UNet2DConditionModel | None = None,
    checkpoint: Path | None = None,
    after_checkpoint: AfterCheckpoint | None = None,
    patches: Patches | None = None,
) -> UNet2DConditionModel:
    """The denoiser fitted to scaled latents and the hidden states of their captions (`encode_captions`).

    empty_LD: the hidden states of the empty caption. start: a denoiser to train further; without one, a new one.
    patches: what the images show, for `recipe.patches_weight`.
    The other arguments are those of `backbone_training.loop.fit`.
    """
    torch.manual_seed(seed)
    _, channels, size, _ = latents_NChw.shape
    model = build_unet(recipe, size, channels, states_NKLD.shape[-1]) if start is None else start
    # Attention as plain products: the fused one's bf16 gradient takes two fifths of a step on a CPU.
    model.set_attn_processor(AttnProcessor())
    signal = sd_scheduler().alphas_cumprod
    parts = nn.ModuleDict({"unet": model})
    if patches is not None:
        parts["heads"] = PatchHeads(recipe.widths[-1], patches)
    seen = _Features(model)

    def loss_of_step(draw: Draw) -> Tensor:
        rows = draw.numpy.integers(len(latents_NChw), size=recipe.how.batch)
        condition_BLD = draw_conditions(states_NKLD[rows], empty_LD, recipe, draw.numpy)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.how.bf16):
            loss = unet_loss(model, latents_NChw[rows], condition_BLD, signal, draw.torch)
        return loss if patches is None else loss + recipe.patches_weight * parts["heads"](seen.features_BPW, rows)

    def after(trained: nn.Module, step: int) -> None:
        seen.forget()  # the model can be copied again
        if after_checkpoint is not None:
            after_checkpoint(trained["unet"], step)  # type: ignore[index]

    fit(parts, loss_of_step, recipe.how, seed=seed, checkpoint=checkpoint, after_checkpoint=after)
    seen.remove()
    return model


class _Features:
    """The latest features at half the resolution: what leaves the first of the blocks that lead up again."""

    def __init__(self, model: UNet2DConditionModel) -> None:
        self.forget()
        self.remove = model.up_blocks[0].register_forward_hook(self._keep).remove

    def forget(self) -> None:
        """Let go of the latest features and the graph behind them."""
        self.features_BPW = torch.empty(0)

    def _keep(self, _: nn.Module, __: object, out_BWhw: Tensor) -> None:
        self.features_BPW = out_BWhw.flatten(2).transpose(1, 2)


def draw_conditions(
    states_BKLD: NDArray[np.float16], empty_LD: NDArray[np.float16], recipe: UnetRecipe, rng: np.random.Generator
) -> Tensor:
    """(B, L, D): for each image the empty caption, one caption, or the mean over a random subset of its captions."""
    batch, n = states_BKLD.shape[:2]
    # How many captions enter each mean: 1, or anything up to all of them; ranks of random numbers choose which.
    counts = np.where(rng.random(batch) < recipe.mean_share, rng.integers(1, n + 1, batch), 1)
    chosen_BK = rng.random((batch, n)).argsort(1) < counts[:, None]
    weights_BK = chosen_BK / counts[:, None]
    mean_BLD = np.einsum("bk,bkld->bld", weights_BK.astype(np.float32), states_BKLD.astype(np.float32))
    mean_BLD[rng.random(batch) < recipe.empty_share] = empty_LD
    return torch.from_numpy(mean_BLD)


def unet_loss(
    model: UNet2DConditionModel,
    latents_BChw: Tensor,
    condition_BLD: Tensor,
    signal: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the predicted noise, weighted by 1 / sqrt(SNR). signal: alpha-bar of every timestep.

    That error grows about as the root of the signal-to-noise ratio, so with this weight every noise level
    contributes alike; unweighted, the noisy levels at which shape and place are settled would hardly count.
    """
    steps_B = torch.randint(len(signal), (len(latents_BChw),), generator=generator)
    noise_BChw = torch.randn(latents_BChw.shape, generator=generator)
    kept_B111 = signal[steps_B].view(-1, 1, 1, 1)
    noisy_BChw = kept_B111.sqrt() * latents_BChw + (1 - kept_B111).sqrt() * noise_BChw
    predicted_BChw = model(noisy_BChw, steps_B, condition_BLD).sample.float()
    snr_B111 = kept_B111 / (1 - kept_B111)
    return ((predicted_BChw - noise_BChw).square() / snr_B111.sqrt()).mean()


@torch.inference_mode()
def encode_captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[Sequence[str]], batch: int = 256
) -> NDArray[np.float16]:
    """The text encoder's last hidden states of every caption: (N, K, L, D) float16."""
    length, width = tokenizer.model_max_length, encoder.config.hidden_size
    states_NKLD = np.empty((len(captions), len(captions[0]), length, width), np.float16)
    for start in range(0, len(captions), batch):
        ids_BKL = tokenize(tokenizer, captions[start : start + batch])
        states_MLD = encoder(ids_BKL.flatten(0, 1)).last_hidden_state
        states_NKLD[start : start + batch] = states_MLD.unflatten(0, ids_BKL.shape[:2]).half().numpy()
    return states_NKLD


@torch.inference_mode()
def generate(
    model: UNet2DConditionModel,
    condition_NLD: Tensor,
    empty_LD: Tensor,
    *,
    guidance: float,
    steps: int,
    seed: int,
    start_NChw: Tensor | None = None,
    strength: float = 1.0,
    batch: int = 50,
) -> Tensor:
    """Scaled latents (N, C, h, w) sampled with DDIM and classifier-free guidance, to judge a denoiser by.

    start_NChw: scaled latents to start from (image to image), noised to the level of the last `strength` of the
    steps; without them sampling starts from noise alone.
    """
    scheduler = sd_scheduler()
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[steps - round(steps * strength) :]
    size, channels = model.config["sample_size"], model.config["in_channels"]
    shape = (len(condition_NLD), channels, size, size)
    latents_NChw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if start_NChw is not None:
        latents_NChw = scheduler.add_noise(start_NChw, latents_NChw, times[:1])
    out = []
    for latents_BChw, condition_BLD in zip(latents_NChw.split(batch), condition_NLD.split(batch), strict=True):
        both_2BLD = torch.cat([empty_LD.expand_as(condition_BLD), condition_BLD])
        for t in times:
            without, given = model(torch.cat([latents_BChw] * 2), t, both_2BLD).sample.chunk(2)
            latents_BChw = scheduler.step(without + guidance * (given - without), t, latents_BChw).prev_sample
        out.append(latents_BChw)
    return torch.cat(out)
