"""Memory of a guided sample of Stable Diffusion v1.4's size: counted before it is used, and measured.

    command   make bench ARGS="--only sampling_memory"         on a CPU: counted at 512 px, measured at 256 px
              make bench ARGS="--cuda --only sampling_memory"  on a GPU: measured at 512 px in bfloat16
    time      2 minutes on one CPU core
    memory    7 GB on a CPU, 12 GB of a GPU

Weights are random, the image tower is CLIP ViT-B/32. Counting goes through the work on tensors without contents
(nd/generate/memory.py); measuring is by how much the process's own memory (RssAnon), or what PyTorch allocated on the
GPU, rises at most in one guided step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from data_feed import watched
from rows import COUNTED, MEASURED, Asked, Row
from sampler import Shell, inputs

from nd.config.application import compose
from nd.generate.memory import Need, empty_copy, needs_of, weight_bytes
from nd.generate.sampler import GuidedSampler

GB = 1e9
WAYS = {"kept": ("full", False), "computed again": ("full", True), "half decoder, kept": ("half", False),
        "half decoder, computed again": ("half", True)}  # fmt: skip
T = 721


def measure(asked: Asked) -> list[Row]:
    """Count at 512 px in both precisions, and measure one guided step."""
    rows = [] if asked.cuda else [row for dtype in ("float32", "bfloat16") for row in counted(dtype)]
    dtype, side = ("bfloat16", 512) if asked.cuda else ("float32", 256)
    return rows + list(measured(asked, dtype, 64 if asked.quick else side))


def sampler_of(device: str, dtype: str, side: int, decoder: str = "full") -> GuidedSampler:
    """Return the sampler over networks of full size for images of some side."""
    given = [f"guidance.decoder={decoder}"]
    cfg = compose(["method=neuraldiffuser", "mapper=ridge", "backbone=sd14", "guidance.kappa=1", *given])
    backbone = Shell(device, dtype)
    backbone.config.image_size = side
    return GuidedSampler(backbone, cfg)


def counted(dtype: str) -> Iterator[Row]:
    """Yield what is counted at 512 px."""
    for name, (decoder, again) in WAYS.items():
        sampler = sampler_of("meta", dtype, 512, decoder)
        needs = needs_of(sampler, checkpoint=again)
        if name == "kept":
            yield gigabytes(f"weights, {dtype}", weight_bytes(sampler))
            yield gigabytes(f"an unguided sample, {dtype}", whole(needs["plain"]))
        yield gigabytes(f"a guided sample at 512 px, {name}, {dtype}", whole(needs["guided"]))


def whole(need: Need) -> float:
    """Return the bytes of one sample."""
    return need.fixed + need.each


def gigabytes(case: str, n_bytes: float) -> Row:
    """Return a row of memory that was counted."""
    return Row(case=case, unit="GB", ours=[n_bytes / GB], clock=COUNTED)


def measured(asked: Asked, dtype: str, side: int) -> Iterator[Row]:
    """Yield by how much memory rises in one guided step, beside what was counted."""
    for name, (decoder, again) in list(WAYS.items())[: asked.pick(1, 2 if not asked.cuda else 4)]:
        sampler = sampler_of(asked.device, dtype, side, decoder)
        need = whole(needs_of(empty_copy(sampler), checkpoint=again)["guided"])
        module = sampler.backbone
        for network in (module.unet, module.vae):
            (network.enable_gradient_checkpointing if again else network.disable_gradient_checkpointing)()
        given = inputs(sampler, 1, 1)[:3]
        rises = [rise(sampler, given, asked.device) / GB for _ in range(asked.pick(1, 2))]
        case = f"a guided sample at {side} px, {name}, {dtype}: measured"
        yield Row(case=case, unit="GB", ours=rises, peer="counted", theirs=[need / GB], clock=MEASURED)
        del sampler, module, given


def rise(sampler: GuidedSampler, given: tuple[torch.Tensor, ...], device: str) -> float:
    """Return the bytes by which memory rises in one gradient."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sampler._gradient(*given, T, 0.3)
        return float(torch.cuda.max_memory_allocated() - before)
    with watched() as risen:
        sampler._gradient(*given, T, 0.3)
        return risen() * (1 << 20)
