"""Generators that begin with a first guess of the image and sample it anew: Takagi & Nishimoto, and Brain-Diffuser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nd.config.components import Generator, Idle, Later
from nd.config.fields import opt, share_of
from nd.config.schema import MethodConfig
from nd.generate.components import DIFFUSION, not_guided, not_sampled, sampling_rules

if TYPE_CHECKING:
    from nd.config.schema import Config

DRAWS = "what VDVAE makes beyond the decoded layers: its most likely image, or one drawn from its distribution"
TOGETHER = ("method.steps", "method.strength", "method.cfg_scale")


@dataclass(kw_only=True)
class ImageToImageSettings(MethodConfig):
    """What both have."""

    variant: str = opt(
        "nd",
        "nd: the first guess is the mean of the VAE's posterior and noised to the level sampling starts from; released:"
        " it is drawn, noised one step of the schedule further, and bytes are cut off",
        choices=("nd", "released"),
    )
    steps: int = opt(50, "DDIM steps of the full schedule")

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return share_of(self.steps, self.strength)


@dataclass(kw_only=True)
class TakagiSettings(ImageToImageSettings):
    """takagi: the decoded latent z40 becomes an image, which DDIM samples anew under the decoded text condition c."""

    generator: str = opt("takagi", "what turns targets into images")
    strength: float = opt(0.8, "share of the schedule that is run: int(steps * strength) steps, in (0, 1]")
    cfg_scale: float = opt(5.0, "classifier-free guidance scale, >= 1")
    repeats: int = opt(5, "images sampled per stimulus, each from its own noise")


@dataclass(kw_only=True)
class VdvaeSettings(MethodConfig):
    """vdvae: what the very deep VAE makes of its decoded latents, the first stage of Brain-Diffuser."""

    generator: str = opt("vdvae", "what turns targets into images")
    vdvae_draws: str = opt("mode", DRAWS, choices=("mode", "sample"))


@dataclass(kw_only=True)
class BrainDiffuserSettings(ImageToImageSettings):
    """brain_diffuser: VDVAE's image is sampled anew by Versatile Diffusion under decoded tokens of image and text."""

    generator: str = opt("brain_diffuser", "what turns targets into images")
    strength: float = opt(
        0.75, "share of the schedule that is run: int(steps * strength) steps; all of it without target vdvae"
    )
    cfg_scale: float = opt(7.5, "classifier-free guidance scale, >= 1")
    repeats: int = opt(1, "images sampled per stimulus, each from its own noise")
    text_share: float = opt(0.4, "weight of the text's branch, in [0, 1]; the image's has the rest")
    vdvae_draws: str = opt("mode", DRAWS, choices=("mode", "sample"))
    versatile: str = opt(
        "shi-labs/versatile-diffusion",
        "Versatile Diffusion in diffusers' layout: hub id, local folder, or package://<name>",
        identity=False,
        weights=True,
    )

    @property
    def sampled_steps(self) -> int:
        """Steps that are run: all of them where no first guess is decoded."""
        return share_of(self.steps, self.strength) if "vdvae" in self.targets else self.steps


def _conditions(cfg: Config) -> list[str]:
    """The conditions that have a share."""
    share = cfg.method.text_share
    return [name for name, weight in (("clip_vision", 1 - share), ("clip_text", share)) if weight > 0]


def _brain_diffuser_wants(cfg: Config) -> list[str]:
    return [*(["vdvae"] if "vdvae" in cfg.method.targets else []), *_conditions(cfg)]


def _brain_diffuser_rules(cfg: Config) -> Iterator[str]:
    yield from sampling_rules(cfg)
    share = cfg.method.text_share
    if not 0 <= share <= 1:
        yield f"method.text_share: {share} lies outside [0, 1] (0: the image's branch alone; 1: the text's)."
        return
    for name in _conditions(cfg):
        if name not in cfg.method.targets:
            alone = 0 if name == "clip_text" else 1
            yield (
                f"method.text_share: {share} needs target {name}, but method.targets is {list(cfg.method.targets)}; add"
                f" it, or set method.text_share={alone}."
            )
    # Also of one without a share: the run loads one CLIP, and a sweep over text_share gives both a share.
    listed = [name for name in ("clip_vision", "clip_text") if name in cfg.method.targets]
    clips = {name: cfg.decoding(name).target.clip for name in listed}
    if len(set(clips.values())) > 1:
        yield (
            f"target.clip: {clips} must be one model, that which Versatile Diffusion was trained with; a target without"
            " a share can be left out of method.targets."
        )


def _brain_diffuser_idle(cfg: Config) -> Iterator[Idle]:
    yield from not_guided(cfg)
    if "vdvae" not in cfg.method.targets:
        yield Idle(("method.strength", "method.vdvae_draws"), "without target vdvae sampling starts from noise alone")


COMPONENTS = (
    Generator(
        name="takagi",
        settings=TakagiSettings,
        needs=("z40", "c"),
        wants=lambda cfg: ["z40", "c"],
        draws=True,
        parts=lambda cfg: DIFFUSION,
        together=TOGETHER,
        rules=sampling_rules,
        idle=not_guided,
        build=Later("nd.generate.takagi:build"),
    ),
    Generator(
        name="vdvae",
        settings=VdvaeSettings,
        needs=("vdvae",),
        wants=lambda cfg: ["vdvae"],
        draws=True,
        parts=lambda cfg: ("sampler", "vdvae"),
        idle=not_sampled,
        build=Later("nd.generate.brain_diffuser:build_first_stage"),
    ),
    Generator(
        name="brain_diffuser",
        settings=BrainDiffuserSettings,
        wants=_brain_diffuser_wants,
        draws=True,
        parts=lambda cfg: ("sampler", *_brain_diffuser_wants(cfg)),
        together=(*TOGETHER, "method.text_share"),
        rules=_brain_diffuser_rules,
        idle=_brain_diffuser_idle,
        build=Later("nd.generate.brain_diffuser:build"),
    ),
)
