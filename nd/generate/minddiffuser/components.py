"""What MindDiffuser's generator declares: its settings, whose presets are recipes, and what contradicts among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nd.config.components import Generator, Idle, Later
from nd.config.fields import opt, share_of
from nd.config.rules import at_least
from nd.config.schema import MethodConfig
from nd.generate.components import DIFFUSION, GUIDANCE, guiding_layers, sampling_rules

if TYPE_CHECKING:
    from nd.config.schema import Config

SECOND_STAGE = (
    "iterations", "learning_rate", "decay", "relative", "fresh_noise", "layer_weights", "norm_weights", "clamp", "keep",
    "patience", "min_gain",
)  # fmt: skip


@dataclass(kw_only=True)
class MindDiffuserSettings(MethodConfig):
    """minddiffuser: DDIM from the noised z under c; then z, c or both are moved until the image has the features g."""

    generator: str = opt("minddiffuser", "what turns targets into images")
    # ---- stage 1: image to image
    steps: int = opt(50, "DDIM steps of the full schedule")
    strength: float = opt(0.7, "share of the schedule that is run: int(steps * strength) steps, in (0, 1]")
    noise_strength: float = opt(
        0.0,
        "z is noised to the level of step int(steps * noise_strength) of the schedule, counted from 0 at the least"
        " noise; 0: to the level at which sampling begins",
    )
    cfg_scale: float = opt(5.0, "classifier-free guidance scale, >= 1")
    repeats: int = opt(1, "images sampled per stimulus, each from its own noise")
    start: str = opt(
        "decoded",
        "the latent that is noised: decoded z, or standard normal numbers, which leaves z out (an ablation)",
        choices=("decoded", "random"),
    )
    # ---- stage 2: towards the decoded features
    optimise: str = opt(
        "both", "what is moved until the image has the decoded features; none: stage 1 alone",
        choices=("none", "z", "c", "both"),
    )  # fmt: skip
    iterations: int = opt(60, "updates of z and c at most")
    learning_rate: float = opt(0.01, "of Adam")
    decay: float = opt(0.999, "factor of the learning rate, applied before every update, in (0, 1]")
    relative: bool = opt(
        True, "learning rate in sizes (root mean squares) of the decoded z and c, so that both move alike; or absolute"
    )
    fresh_noise: bool = opt(False, "new noise in every iteration, as released; or the same throughout")
    layer_weights: list[float] = opt([1.5, 1.2, 1.0, 1.0, 1.0, 1.0], "weight of each layer of g")
    norm_weights: bool = opt(
        True,
        "divide each layer's weight by the norm of its decoded features, and take means; or plain sums of squares",
    )
    clamp: bool = opt(False, "clip the image to [0, 1] before the image tower: saturated pixels then have no gradient")
    keep: str = opt(
        "best", "z and c that make the image: those of the least loss, or the last", choices=("best", "last")
    )
    patience: int = opt(10, "an image stops when so many iterations gain less than min_gain; 0: never early")
    min_gain: float = opt(0.01, "share of its loss that an image has to gain within patience iterations, in [0, 1)")

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return share_of(self.steps, self.strength)

    @property
    def moved(self) -> tuple[str, ...]:
        """The targets that stage 2 moves."""
        return {"none": (), "both": ("z", "c")}.get(self.optimise, (self.optimise,))

    def rate(self, iteration: int) -> float:
        """Return Adam's learning rate in an update, counted from 0: it has decayed once before the first.

        ReedOnePeck/MindDiffuser@c9773ac:Image reconstruction/Reconstruction.py:357-392 steps ExponentialLR before Adam.
        """
        return float(self.learning_rate * self.decay ** (iteration + 1))


def _wants(cfg: Config) -> list[str]:
    method = cfg.method
    assert isinstance(method, MindDiffuserSettings)
    return [*(["z"] if method.start == "decoded" else []), "c", *(["g"] if method.moved else [])]


def _rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the fields of both stages."""
    method = cfg.method
    assert isinstance(method, MindDiffuserSettings)
    yield from sampling_rules(cfg)
    if not 0 <= method.noise_strength < 1:
        yield f"method.noise_strength: {method.noise_strength} lies outside [0, 1)."
    if method.moved:
        yield from _second_stage_rules(cfg, method)


def _second_stage_rules(cfg: Config, method: MindDiffuserSettings) -> Iterator[str]:
    yield from at_least(1, data=method, names=("iterations",), key="method")
    yield from at_least(0, data=method, names=("patience",), key="method")
    if method.learning_rate <= 0:
        yield f"method.learning_rate: {method.learning_rate} must be positive; method.optimise=none leaves stage 2 out."
    if not 0 < method.decay <= 1:
        yield f"method.decay: {method.decay} lies outside (0, 1]."
    if not 0 <= method.min_gain < 1:
        yield f"method.min_gain: {method.min_gain} lies outside [0, 1)."
    if method.fresh_noise and (method.keep == "best" or method.patience):
        yield (
            "method.fresh_noise: losses under different noises do not say which iterate is better. Give"
            " method.keep=last and method.patience=0 with it, or method.fresh_noise=false."
        )
    if len(method.layer_weights) != len(layers := guiding_layers(cfg)):
        yield (
            f"method.layer_weights: {len(method.layer_weights)} weights for the {len(layers)} layers of target g"
            f" (target.layers={layers}); give one weight per layer."
        )
    if any(weight < 0 for weight in method.layer_weights) or not any(method.layer_weights):
        yield f"method.layer_weights: {method.layer_weights} must hold no negative weight and one that is positive."


def _idle(cfg: Config) -> Iterator[Idle]:
    yield Idle(GUIDANCE, f"generator {cfg.method.generator} optimises the sampler's inputs, see method.*")
    yield Idle(("backbone.tiny_vae",), f"generator {cfg.method.generator} decodes with the VAE")
    if cfg.method.optimise == "none":
        yield Idle(tuple(f"method.{name}" for name in SECOND_STAGE), "method.optimise is none")


COMPONENTS = (
    Generator(
        name="minddiffuser",
        settings=MindDiffuserSettings,
        needs=("z", "c", "g"),
        wants=_wants,
        draws=True,
        parts=lambda cfg: (*DIFFUSION, "image_tower") if cfg.method.optimise != "none" else DIFFUSION,
        rules=_rules,
        idle=_idle,
        build=Later("nd.generate.minddiffuser.generator:build"),
    ),
)
