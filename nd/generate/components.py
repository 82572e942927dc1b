"""The generators that nd has: guided diffusion, images straight from one target, and floors that read no voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nd.config.components import Generator, Idle, Later
from nd.config.fields import opt, share_of
from nd.config.groups import GuidanceConfig
from nd.config.rules import at_least
from nd.config.schema import MethodConfig

if TYPE_CHECKING:
    from nd.config.schema import Config

TIMESTEPS = 1000  # of the noise schedule that diffusion models are trained with
# What each kind of work costs a sample, in steps without feature guidance, by the operations of Stable Diffusion v1.4
# at 512 px. For estimates of time alone.
COST = {"guided": 4.0, "plain": 1.0, "decode": 1.5}
STEERING = tuple(
    f"guidance.{name}" for name in ("eta", "layer_weights", "through_unet", "normalise", "schedule", "decoder")
)
GUIDANCE = ("guidance.kappa", *STEERING)
SAMPLING = tuple(f"trainer.{name}" for name in ("memory_gb", "compile", "previews"))
DIFFUSION = ("vae", "unet", "scheduler", "text_encoder", "tokenizer", "sampler")  # parts of the backbone that sample


@dataclass(kw_only=True)
class GuidedDiffusionSettings(MethodConfig):
    """guided_diffusion: DDIM from the noised latent z under the text condition c, steered towards the features g."""

    generator: str = opt("guided_diffusion", "what turns targets into images")
    variant: str = opt(
        "nd",
        "whose arithmetic the sampler follows: ours, the published description's, or the released code's to the letter",
        choices=("nd", "paper", "released"),
    )
    steps: int = opt(50, "DDIM steps of the full schedule")
    strength: float = opt(0.75, "share of the schedule that is run: int(steps * strength) steps, in (0, 1]")
    cfg_scale: float = opt(7.5, "classifier-free guidance scale, >= 1")
    sag_scale: float = opt(0.0, "self-attention guidance scale, >= 0; 0 switches it off. One more UNet pass per step")
    repeats: int = opt(5, "images sampled per stimulus, each from its own noise")

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return share_of(self.steps, self.strength, binary=self.variant == "released")

    def guided_steps(self, guidance: GuidanceConfig) -> int:
        """Return how many of the sampled steps are guided, the first int(n * eta)."""
        if guidance.kappa <= 0:
            return 0
        return share_of(self.sampled_steps, guidance.eta, binary=self.variant == "released")


@dataclass(kw_only=True)
class RandomImageSettings(MethodConfig):
    """random_image: training images drawn at random for every stimulus."""

    generator: str = opt("random_image", "what turns targets into images")
    repeats: int = opt(5, "images sampled per stimulus, each from its own noise")


def sample_cost(method: MethodConfig, guidance: GuidanceConfig) -> float:
    """Return what sampling one image costs, in steps without feature guidance: guided ones take both kinds of work.

    >>> sample_cost(GuidedDiffusionSettings(steps=20, strength=0.5), GuidanceConfig(kappa=1.0, eta=0.2))
    19.5
    """
    guided = method.guided_steps(guidance)
    return method.sampled_steps * COST["plain"] + guided * COST["guided"] + COST["decode"]


def plain(name: str, text: str) -> type[MethodConfig]:
    """Return the settings of a generator that has no fields of its own."""
    made: type[MethodConfig] = dataclass(kw_only=True)(
        type(
            f"{name.title().replace('_', '')}Settings",
            (MethodConfig,),
            {
                "__doc__": f"{name}: {text}.",
                "__annotations__": {"generator": "str"},
                "__module__": __name__,
                "generator": opt(name, "what turns targets into images"),
            },
        )
    )
    return made


@dataclass(frozen=True)
class _Floor:
    """What builds a generator of ``nd.generate.floors``, for one run; other processes can be sent it."""

    function: str

    def __call__(self, cfgs: Sequence[Config], device: Any) -> Any:
        from nd.generate import floors

        (cfg,) = cfgs
        return floors.Alone(getattr(floors, self.function)(cfg, device))


def _guided_wants(cfg: Config) -> list[str]:
    return ["z", "c", "g"] if cfg.guided_steps else ["z", "c"]


def _guided_parts(cfg: Config) -> tuple[str, ...]:
    return (*DIFFUSION, "image_tower", "tiny_vae") if cfg.guided_steps else DIFFUSION


def sampling_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the fields that every sampler has."""
    method = cfg.method
    yield from at_least(1, data=method, names=("steps", "repeats"), key="method")
    if not 0 < method.strength <= 1:
        yield f"method.strength: {method.strength} lies outside (0, 1]."
    elif method.steps >= 1 and cfg.sampled_steps < 1:
        yield (
            f"method.strength: int(steps * strength) = int({method.steps} * {method.strength}) = 0 steps would be run;"
            " give more steps or a larger strength."
        )
    if method.cfg_scale < 1:
        yield f"method.cfg_scale: {method.cfg_scale} is below 1 (1 switches classifier-free guidance off)."
    if method.steps > TIMESTEPS:
        yield f"method.steps: {method.steps} exceeds the {TIMESTEPS} training steps of the noise schedule."


def _guided_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the sampler's fields, and with those of guidance."""
    method = cfg.method
    assert isinstance(method, GuidedDiffusionSettings)
    yield from sampling_rules(cfg)
    if method.sag_scale < 0:
        yield f"method.sag_scale: {method.sag_scale} is negative; 0 switches self-attention guidance off."
    if cfg.trainer.compile and method.sag_scale:
        yield (
            "trainer.compile: self-attention guidance listens to the UNet's attention, which a compiled UNet does not"
            " let through; set trainer.compile=false or method.sag_scale=0."
        )
    yield from _guidance_rules(cfg)


def _guidance_rules(cfg: Config) -> Iterator[str]:
    guidance = cfg.guidance
    if guidance.kappa < 0:
        yield f"guidance.kappa: {guidance.kappa} is negative, which would steer away from the features; 0 switches off."
    if not 0 <= guidance.eta <= 1:
        yield f"guidance.eta: {guidance.eta} lies outside [0, 1] (share of the sampled steps that is guided)."
    if guidance.kappa <= 0 or guidance.eta <= 0:
        return
    if guidance.decoder == "tiny" and not cfg.backbone.tiny_vae:
        yield (
            "guidance.decoder: tiny needs backbone.tiny_vae=<folder or hub id>, a small autoencoder trained on the"
            " latents of this backbone; choose guidance.decoder=half or full without one."
        )
    if "g" not in cfg.method.targets:
        yield (
            f"guidance.kappa: guidance {guidance.kappa} needs target g, but method.targets is"
            f" {list(cfg.method.targets)}; add g or choose guidance=none."
        )
    elif len(guidance.layer_weights) != len(layers := guiding_layers(cfg)):
        yield (
            f"guidance.layer_weights: {len(guidance.layer_weights)} weights for {len(layers)} target.layers;"
            " give one weight per layer."
        )
    if any(weight < 0 for weight in guidance.layer_weights):
        yield f"guidance.layer_weights: {guidance.layer_weights} holds a negative weight."
    elif guidance.layer_weights and not any(guidance.layer_weights):
        yield (
            f"guidance.layer_weights: {guidance.layer_weights} leave nothing to guide by; give one that is positive, or"
            " choose guidance=none."
        )


def guiding_layers(cfg: Config) -> list[int]:
    """Return the blocks of the image tower whose features guide: those of target g."""
    layers: list[int] = getattr(cfg.decoding("g").target, "layers", [])
    return list(layers)


def _guided_idle(cfg: Config) -> Iterator[Idle]:
    if cfg.guidance.kappa == 0:
        yield Idle(STEERING, "guidance.kappa is 0")
    if cfg.guidance.decoder != "tiny":
        yield Idle(("backbone.tiny_vae",), f"guidance.decoder is {cfg.guidance.decoder}")


def not_guided(cfg: Config) -> Iterator[Idle]:
    """What has no effect with a generator that decoded features do not guide."""
    yield Idle(GUIDANCE, f"generator {cfg.method.generator} is not guided")


def not_sampled(cfg: Config) -> Iterator[Idle]:
    """The same with one that does not sample either."""
    yield from not_guided(cfg)
    yield Idle(SAMPLING, f"generator {cfg.method.generator} does not sample")


def _blind_idle(cfg: Config) -> Iterator[Idle]:
    yield from not_sampled(cfg)
    yield Idle(("control",), f"generator {cfg.method.generator} uses no voxels")


def repeats_rule(cfg: Config) -> Iterator[str]:
    """What is wrong with the number of images of a stimulus."""
    yield from at_least(1, data=cfg.method, names=("repeats",), key="method")


def _nearest_rules(cfg: Config) -> Iterator[str]:
    if not cfg.method.targets:
        yield "method.targets: generator nearest_image needs at least one target to compare."


COMPONENTS = (
    Generator(
        name="guided_diffusion",
        settings=GuidedDiffusionSettings,
        needs=("z", "c"),
        wants=_guided_wants,
        draws=True,
        parts=_guided_parts,
        all_config_groups=("guidance",),
        config_groups=lambda cfg: ("guidance",) if cfg.guided_steps else (),
        words=lambda cfg: ["guided" if cfg.guided_steps else "unguided"],
        together=("guidance.kappa", "guidance.eta"),
        rules=_guided_rules,
        idle=_guided_idle,
        build=Later("nd.generate.guided_diffusion:build"),
    ),
    Generator(
        name="pixels",
        settings=plain("pixels", "the decoded pixels, clipped"),
        needs=("pixels",),
        wants=lambda cfg: ["pixels"],
        idle=not_sampled,
        build=_Floor("build_pixels"),
    ),
    Generator(
        name="vae",
        settings=plain("vae", "what the autoencoder makes of the decoded latent"),
        needs=("z",),
        wants=lambda cfg: ["z"],
        parts=lambda cfg: ("vae", "sampler"),
        idle=not_sampled,
        build=_Floor("build_latents"),
    ),
    Generator(
        name="mean_image",
        settings=plain("mean_image", "the mean of the training images"),
        wants=lambda cfg: [],
        reads_targets=False,
        idle=_blind_idle,
        build=_Floor("build_mean"),
    ),
    Generator(
        name="nearest_image",
        settings=plain("nearest_image", "the training image whose true targets correlate best with the decoded ones"),
        captions=lambda cfg: True,
        rules=_nearest_rules,
        idle=not_sampled,
        build=_Floor("build_nearest"),
    ),
    Generator(
        name="random_image",
        settings=RandomImageSettings,
        wants=lambda cfg: [],
        reads_targets=False,
        draws=True,
        captions=lambda cfg: True,
        rules=repeats_rule,
        idle=_blind_idle,
        build=_Floor("build_random"),
    ),
)
