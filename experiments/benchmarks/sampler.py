"""What a reconstruction costs: the engine against the released algorithm written plainly, on one machine.

    command   python experiments/benchmarks/sampler.py            on a CPU, Scenes models: images per second of both
              python experiments/benchmarks/sampler.py --flops    operations at Stable Diffusion's size; no weights
              python experiments/benchmarks/sampler.py --cuda     full size with random weights, on a GPU
              python experiments/benchmarks/sampler.py --one --steps 6 --eta .25 --sag 0
                                                                  one image of full size on a CPU against its operations
    time      1 minute on 2 CPU cores; --flops 30 s; --one about 4 minutes, 10 GB; --cuda not measured
    found     on 2 CPU cores, 80 images against 8 made plainly: 2.5 and 0.48 images/s, 5.2 times; the plain rate
              varied from 0.48 to 0.57 between runs. Images equal to 9e-6. --flops: 232.4 TFLOP an image plainly,
              133.7 by the engine, 1.74 times less

Both follow the released arithmetic (method=neuraldiffuser_released): self-attention guidance .75, 50 steps, strength
.75, eta .2, kappa 300000. The plain algorithm is tests/helpers_released.py: one image at a time, the conditional UNet
run again for the gradient, all intermediate latents decoded and thrown away. Inputs are random: only sizes matter here.
An image is one image in one repeat. The plain algorithm is slow and makes a few images only; half of them before and
half after the engine's, as others may use the machine at one of the times.

Operations are counted on the meta device: one pass forward and backward of each network, then one step of each kind and
one decoded image, times their number in a trajectory. 2 operations a multiplication; the text encoder, which the
plain algorithm runs once per image, is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from extraction import CLOCK, SD_VAE, matmul_rate, seconds
from replay import Recorder, Replay
from rows import COUNTED, WALL_TIME, Asked, Row, peak_row
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.config.application import compose
from nd.config.fields import share_of
from nd.files import write_json
from nd.generate.plan import Plan, plan_for
from nd.generate.sampler import GuidedSampler

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers_released import Numbers, plain_decode, plain_eps, plain_gradient, plain_picture, plain_scheduler

SD_UNET = {  # unet/config.json of CompVis/stable-diffusion-v1-4
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD_TEXT = (77, 768)
SD_SCHEDULE = {  # scheduler/scheduler_config.json
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
REFERENCE = {"plain": 232, "engine": 134}  # TFLOP an image, reckoned from single passes
GUIDED_T = 721


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    asked = parsed(given)
    torch.manual_seed(0)
    cfg, numbers = configured(asked)
    way = operations if asked.flops else on_gpu if asked.cuda else one_image if asked.one else on_cpu
    figures = way(cfg, numbers, asked)
    if asked.out:
        known = {"machine": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        write_json(Path(asked.out), {"asked": vars(asked), **known, **figures})
    return figures


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--flops", action="store_true", help="count operations at full size")
    kind.add_argument("--cuda", action="store_true", help="time models of full size on a GPU")
    kind.add_argument("--one", action="store_true", help="time one image of full size on a CPU")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain-pictures", type=int, default=4, help="pictures the plain algorithm is timed on")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--strength", type=float, default=0.75)
    parser.add_argument("--sag", type=float, default=0.75, help="scale of self-attention guidance; 0: off")
    parser.add_argument("--kappa", type=float, default=300_000.0)
    parser.add_argument("--eta", type=float, default=0.2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="--cuda: samples at once")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    return parser.parse_args(given)


def measure(asked: Asked) -> list[Row]:
    """Return the rows of the engine against the plain algorithm: on Scenes and counted, or at full size on a GPU."""
    CLOCK["in use"] = asked.clock
    torch.manual_seed(0)
    if asked.cuda and not asked.quick:
        return on_gpu_rows(parsed(["--cuda", "--batches", "1", "4", "8", "16"]))
    images, plain = asked.pick((1, 1), (8, 2))
    sizes = parsed(["--images", str(images), "--repeats", "1", "--plain-pictures", str(plain),
                    *asked.pick(["--steps", "8", "--kappa", "1"], [])])  # fmt: skip
    cfg, numbers = configured(sizes)
    turns = [on_cpu(cfg, numbers, sizes) for _ in range(asked.pick(1, 3))]
    row = Row(case=f"guided as released, {images} images, Scenes models", unit="images/s", more=True, clock=asked.clock,
              ours=[turn["engine_per_s"] for turn in turns], peer="as released, plainly",
              theirs=[turn["plain_per_s"] for turn in turns],
              note=f"images differ by {max(turn['largest_difference'] for turn in turns):.1g} at most")  # fmt: skip
    return [row, *([] if asked.quick else counted(parsed(["--flops"])))]


def counted(sizes: argparse.Namespace) -> list[Row]:
    """Return the rows of operations at Stable Diffusion's size: of an image both ways, and of all it consists of."""
    found = operations(*configured(sizes), sizes)
    case = "an image as released at 512 px: operations"
    rows = [Row(case=case, unit="TFLOP", ours=[found["engine"]], peer="as released, plainly", theirs=[found["plain"]],
                clock=COUNTED)]  # fmt: skip
    for name, both in found["passes"].items():
        rows += [Row(case=f"{name} at 512 px, {way}", unit="TFLOP", ours=[value], clock=COUNTED)
                 for way, value in zip(("forward", "backward to its input"), both, strict=True)]  # fmt: skip
    return rows + [Row(case=f"{name} at 512 px", unit="TFLOP", ours=[value], clock=COUNTED)
                   for name, value in found["parts"].items() if name.startswith("engine")]  # fmt: skip


def on_gpu_rows(sizes: argparse.Namespace) -> list[Row]:
    """Return the rows of every batch on a GPU."""
    found = on_gpu(*configured(sizes), sizes)
    rows, shared = [], {"more": True, "clock": WALL_TIME}
    for batch, figures in found["batches"].items():
        case = f"guided as released at 512 px, {batch} at once, bfloat16"
        rows += [Row(case=case, unit="images/s", ours=[figures["engine_per_s"]], peer="as released, plainly",
                     theirs=[figures["plain_per_s"]], **shared),
                 Row(case=case, unit="of torch.mm's rate", ours=[figures["share_of_matmul"]], **shared)]  # fmt: skip
    return [*rows, peak_row("peak memory of the process, GPU left out")]


def configured(asked: argparse.Namespace) -> tuple[Config, Numbers]:
    """The same settings for engine and plain algorithm."""
    given = ["method=neuraldiffuser_released", "guidance=released", "backbone=scenes"]
    method = {"steps": asked.steps, "strength": asked.strength, "sag_scale": asked.sag, "repeats": asked.repeats}
    given += [f"method.{name}={value}" for name, value in method.items()]
    cfg = compose([*given, f"guidance.kappa={asked.kappa}", f"guidance.eta={asked.eta}"])
    numbers = Numbers(asked.steps, asked.strength, cfg.method.cfg_scale, asked.sag, asked.kappa, asked.eta)
    return cfg, numbers


def inputs(sampler: GuidedSampler, n_images: int, n_repeats: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, c, g and noises, random; g of the size that features have."""
    backbone, device = sampler.backbone, sampler.backbone.device
    text = sampler.denoise.uncond_1TD.shape[1:]
    shapes = backbone.latent_shape, text, sampler.feature_shape, (n_repeats, *backbone.latent_shape)
    z, c, g, noise = (torch.randn(n_images, *shape, device=device) for shape in shapes)
    return z, c, 0.3 * g, noise


# ---- seconds -------------------------------------------------------------------------------------------------------


def on_cpu(cfg: Config, numbers: Numbers, asked: argparse.Namespace) -> dict[str, Any]:
    """Reconstructions per second with the Scenes models."""
    sampler = GuidedSampler(load_backbone(cfg.backbone), cfg)
    sampler.use(Plan.for_speed([asked.images * asked.repeats]))
    figures = compared(sampler, numbers, asked)
    print(f"Scenes models, {torch.get_num_threads()} threads; {asked.steps} steps, strength {asked.strength}")
    show(figures, asked)
    return figures


def compared(sampler: GuidedSampler, numbers: Numbers, asked: argparse.Namespace) -> dict[str, Any]:
    """The plain algorithm, the engine, and the plain algorithm again, on the same inputs."""
    z, c, g, noise = inputs(sampler, asked.images, asked.repeats)
    places = [divmod(k, asked.repeats) for k in range(min(asked.plain_pictures, asked.images * asked.repeats))]
    plain: dict[tuple[int, int], Tensor] = {}

    def plainly(wanted: list[tuple[int, int]]) -> None:
        for i, r in wanted:
            plain[i, r] = plain_picture(sampler.backbone, z[i], c[i], g[i], noise[i, r], numbers)

    found: list[Any] = []
    warm(sampler, numbers)
    half = (len(places) + 1) // 2
    plain_s = seconds(plainly, places[:half])
    engine_s = seconds(lambda: found.extend(sampler.sample(z, c, g, noise)))
    plain_s += seconds(plainly, places[half:])
    apart = torch.stack([(found[0].images[place] - picture).abs().flatten() for place, picture in plain.items()])
    rates = {"plain_per_s": len(places) / plain_s, "engine_per_s": asked.images * asked.repeats / engine_s}
    return {
        **rates, "ratio": rates["engine_per_s"] / rates["plain_per_s"], "plain_pictures": len(places),
        "engine_pictures": asked.images * asked.repeats, "mean_difference": float(apart.mean()),
        "largest_difference": float(apart.max()), "stopped": int((found[0].stopped > 0).sum()),
    }  # fmt: skip


def warm(sampler: GuidedSampler, numbers: Numbers) -> None:
    """The first passes of every network, which are slower."""
    z, c, g, noise = inputs(sampler, 1, 1)
    few = Numbers(4, 1.0, numbers.cfg, numbers.sag, numbers.kappa, 0.5)
    plain_picture(sampler.backbone, z[0], c[0], g[0], noise[0, 0], few)
    t, abar, _ = sampler._at(0)
    _, eps = sampler._gradient(z, c, g, t, abar)
    with torch.no_grad():
        sampler.denoise(z, t, c, abar, eps)


def show(figures: dict[str, Any], asked: argparse.Namespace) -> None:
    """The table."""
    for name in ("plain", "engine"):
        print(f"{name:8}{figures[f'{name}_per_s']:10.4g} images/s  ({figures[f'{name}_pictures']} images)")
    print(f"ratio   {figures['ratio']:10.3g}")
    print(
        f"pictures differ by {figures['mean_difference']:.2g} on average, {figures['largest_difference']:.2g} at most; "
        f"{figures['stopped']} stopped being finite"
    )


# ---- full size -----------------------------------------------------------------------------------------------------


class Shell(Backbone):
    """Models of Stable Diffusion v1.4's and CLIP ViT-B/32's sizes with random weights; with none on the meta device."""

    def __init__(self, device: str, dtype: str) -> None:
        import open_clip
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        super().__init__(compose(["backbone=sd14"]).backbone, device, dtype=dtype)
        with torch.device(device):
            self.unet, self.vae = UNet2DConditionModel(**SD_UNET), AutoencoderKL(**SD_VAE)
            self.clip = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device=device)
            self._uncond = torch.zeros(1, *SD_TEXT, dtype=self.dtype)
        for module in (self.unet, self.vae, self.clip):
            module.to(self.dtype).requires_grad_(False).eval()
        self.scheduler = DDIMScheduler(**SD_SCHEDULE)

    def encode_text(self, captions: list[str], length: int = 0) -> Tensor:
        """The same for all captions: there is no text encoder."""
        return self._uncond.expand(len(captions), -1, -1)


def operations(cfg: Config, numbers: Numbers, asked: argparse.Namespace) -> dict[str, Any]:
    """TFLOP of every pass, and of an image by either way."""
    # The counter fails where a leaf goes straight into a module; in bfloat16 every input is a copy.
    backbone = Shell("meta", "bfloat16")
    sampler = GuidedSampler(backbone, cfg)
    passes, parts = of_networks(sampler), of_steps(sampler, numbers)
    n_steps = share_of(numbers.steps, numbers.strength)
    n_guided = share_of(n_steps, numbers.eta)
    plain = n_steps * parts["plain_step"] + n_guided * parts["plain_gradient"] + (n_steps + 1) * parts["decode"]
    engine = (n_steps - n_guided) * parts["engine_step"] + n_guided * parts["engine_guided_step"] + parts["decode"]
    print(f"TFLOP at 512 px, {n_steps} steps, {n_guided} guided, self-attention guidance {numbers.sag}")
    for name, (forward, backward) in passes.items():
        print(f"  {name:20}{forward:8.4f} forward {backward:8.4f} backward to the input")
    for name, value in parts.items():
        print(f"  {name:20}{value:8.4f}")
    for name, value in (("plain", plain), ("engine", engine)):
        print(f"{name:8}{value:8.1f} an image; reference {REFERENCE[name]} with the defaults")
    print(f"ratio   {plain / engine:8.2f}")
    return {"passes": passes, "parts": parts, "plain": plain, "engine": engine, "ratio": plain / engine}


def of_networks(sampler: GuidedSampler) -> dict[str, tuple[float, float]]:
    """TFLOP forward and backward of each network on one sample."""
    backbone, tower = sampler.backbone, sampler.tower
    assert tower is not None
    z, c, _, _ = inputs(sampler, 1, 1)
    picture = torch.empty(1, 3, backbone.config.image_size, backbone.config.image_size, device=backbone.device)
    works: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "UNet": (lambda x: sampler.denoise.conditional(x, GUIDED_T, c), z),
        "VAE decoder": (lambda x: backbone.decode(x, clamp=False), z),
        "image tower, 6 blocks": (lambda x: torch.stack(list(tower(x))), picture),
    }
    return {name: there_and_back(work, x) for name, (work, x) in works.items()}


def there_and_back(work: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """TFLOP forward, and backward to the input."""

    def both() -> None:
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(work(leaf).float().sum(), leaf)

    forward = tflop(lambda: work(x))
    return forward, tflop(both) - forward


def of_steps(sampler: GuidedSampler, numbers: Numbers) -> dict[str, float]:
    """TFLOP of what trajectories consist of."""
    backbone = sampler.backbone
    z, c, g, _ = inputs(sampler, 1, 1)
    scheduler, t = plain_scheduler(backbone, numbers.steps), torch.tensor(GUIDED_T)
    abar, uncond = float(scheduler.alphas_cumprod[t]), backbone.encode_text([""])

    def guided() -> None:
        _, eps = sampler._gradient(z, c, g, GUIDED_T, abar)
        with torch.no_grad():
            sampler.denoise(z, GUIDED_T, c, abar, eps)

    return {
        "plain_step": tflop(lambda: plain_eps(backbone, scheduler, z, t, uncond, c, numbers)),
        "plain_gradient": tflop(lambda: plain_gradient(backbone, z, t, c, g[0], numbers)),
        "engine_step": tflop(lambda: sampler.denoise(z, GUIDED_T, c, abar)),
        "engine_guided_step": tflop(guided),
        "decode": tflop(lambda: plain_decode(backbone, z)),
    }


def tflop(work: Callable[[], object]) -> float:
    """Operations of some work, 1e12."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def one_image(
    cfg: Config, numbers: Numbers, asked: argparse.Namespace, models: Callable[[str, str], Backbone] = Shell
) -> dict[str, Any]:
    """Full size in float32, one image in one repeat: its time, and that of its own operations at this moment's rates.

    Those are its convolutions and matrix products, each at its own shape, made one by one before and after it.
    """
    sampler, empty = GuidedSampler(models("cpu", "float32"), cfg), GuidedSampler(models("meta", "float32"), cfg)
    plan = plan_for(sampler, 0.0, [1])
    with Recorder() as recorder:
        empty.use(plan)
        empty.sample(*inputs(empty, 1, 1))
    sampler.use(plan)
    given, replay = inputs(sampler, 1, 1), Replay(recorder)
    replay.turn(warm=True)
    taken = seconds(sampler.sample, *given)
    replay.turn()
    own, total = statistics.mean(replay.turns), recorder.total
    turns = " and ".join(f"{turn:.0f}" for turn in replay.turns)
    print(
        f"one image: {total / 1e12:.1f} TFLOP, {taken:.0f} s, {taken / own:.2f} times that of its operations "
        f"({turns} s before and after)"
    )
    return {"flop": total, "seconds": taken, "seconds_of_operations": replay.turns, "plan": str(plan)}


def on_gpu(cfg: Config, numbers: Numbers, asked: argparse.Namespace) -> dict[str, Any]:
    """Full size in bfloat16: the engine at several batches against the plain algorithm."""
    counted = operations(cfg, numbers, asked)
    peak = matmul_rate("cuda", torch.bfloat16)
    sampler = GuidedSampler(Shell("cuda", "bfloat16"), cfg)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "matmul_flop_per_s": peak, "batches": {}}
    for batch in asked.batches:
        sampler.use(Plan(guided=batch, plain=batch, decode=batch))
        sizes = argparse.Namespace(images=batch, repeats=1, plain_pictures=min(2, batch))
        try:
            figures = compared(sampler, numbers, sizes)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"batch {batch}: out of memory")
            break
        figures["share_of_matmul"] = figures["engine_per_s"] * counted["engine"] * 1e12 / peak
        found["batches"][batch] = figures
        share = f"{figures['share_of_matmul']:.0%} of {peak / 1e12:.3g} TFLOP/s"
        print(f"\nbatch {batch}, {found['device']}, bfloat16: {share}")
        show(figures, sizes)
    return {**found, "operations": counted}


if __name__ == "__main__":
    main()
