"""What SoulDiffuser's generator declares: its settings, and what contradicts among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nd.config.components import Generator, Idle, Later
from nd.config.fields import opt, share_of
from nd.config.rules import at_least
from nd.config.schema import MethodConfig
from nd.generate.components import DIFFUSION, not_guided, sampling_rules

if TYPE_CHECKING:
    from nd.config.schema import Config

ADAPTERS = ("edge", "colour")
OF_CAPTIONS = ("text_images", "text_temperature")


@dataclass(kw_only=True)
class SoulDiffuserSettings(MethodConfig):
    """souldiffuser: DDIM from the noised z under words, steered by adapters that read an edge map and a mosaic."""

    generator: str = opt("souldiffuser", "what turns targets into images")
    variant: str = opt(
        "figure",
        "figure: built from README and figure; no paper or code public",
        identity=False,  # there is no other
        choices=("figure",),
    )
    steps: int = opt(50, "DDIM steps of the full schedule")
    strength: float = opt(0.75, "share of the schedule that is run: int(steps * strength) steps, in (0, 1]")
    cfg_scale: float = opt(7.5, "classifier-free guidance scale, >= 1")
    repeats: int = opt(5, "images sampled per stimulus, each from its own noise")
    omega_edge: float = opt(1.0, "omega_1: weight of the edge adapter's features, >= 0; 0 leaves it out")
    omega_colour: float = opt(1.0, "omega_2: weight of the colour adapter's features, >= 0; 0 leaves it out")
    adapter_share: float = opt(1.0, "share of the sampled steps, the first int(n * share), that adapters act in")
    edge_adapter: str = opt(
        "package://scenes-adapters/edge",
        "T2I-Adapter of edge maps: package://<name>, folder in diffusers' layout (safetensors), or hub id",
        identity=False,
        weights=True,
    )
    colour_adapter: str = opt(
        "package://scenes-adapters/colour",
        "T2I-Adapter of colour mosaics: package://<name>, folder in diffusers' layout (safetensors), or hub id",
        identity=False,
        weights=True,
    )
    edge_threshold: float = opt(
        0.0,
        "edges above it are white, others black, as adapters of edge detectors were trained; 0: maps as decoded",
    )
    text: str = opt(
        "nearest",
        "what conditions the UNet: the decoded embedding c itself, the training caption nearest to it, or a mixture of"
        " the nearest ones",
        choices=("nearest", "mixture", "direct"),
    )
    text_images: int = opt(8, "training images, the nearest ones, whose captions are compared")
    text_temperature: float = opt(0.05, "of text=mixture: weights are softmax(correlation / temperature)")

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return share_of(self.steps, self.strength)

    @property
    def omegas(self) -> tuple[float, ...]:
        """Weights, in the order of ``ADAPTERS``."""
        return tuple(float(getattr(self, f"omega_{name}")) for name in ADAPTERS)

    @property
    def acting(self) -> list[str]:
        """The adapters that have a weight and steps to act in."""
        if not self.adapted_steps:
            return []
        return [name for name, omega in zip(ADAPTERS, self.omegas, strict=True) if omega > 0]

    @property
    def adapted_steps(self) -> int:
        """How many of the sampled steps adapters act in, the first ones."""
        return share_of(self.sampled_steps, self.adapter_share)


def _wants(cfg: Config) -> list[str]:
    assert isinstance(cfg.method, SoulDiffuserSettings)
    return ["z", "c", *cfg.method.acting]


def _rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the fields of the sampler, of adapters and of words."""
    method = cfg.method
    assert isinstance(method, SoulDiffuserSettings)
    yield from sampling_rules(cfg)
    for name, omega in zip(ADAPTERS, method.omegas, strict=True):
        if omega < 0:
            yield f"method.omega_{name}: {omega} is negative, which would steer away from the map; 0 leaves it out."
        elif name in method.acting and name not in method.targets:
            yield (
                f"method.omega_{name}: {omega} needs target {name}, but method.targets is {list(method.targets)}; add"
                f" it, or set method.omega_{name}=0."
            )
    if not 0 <= method.adapter_share <= 1:
        yield f"method.adapter_share: {method.adapter_share} lies outside [0, 1] (share of the sampled steps)."
    if not 0 <= method.edge_threshold < 1:
        yield f"method.edge_threshold: {method.edge_threshold} lies outside [0, 1)."
    yield from at_least(1, data=method, names=("text_images",), key="method")
    if method.text_temperature <= 0:
        yield f"method.text_temperature: {method.text_temperature} must be positive."


def _idle(cfg: Config) -> Iterator[Idle]:
    method = cfg.method
    assert isinstance(method, SoulDiffuserSettings)
    yield from not_guided(cfg)
    if method.text != "mixture":
        fields = OF_CAPTIONS if method.text == "direct" else OF_CAPTIONS[1:]
        yield Idle(tuple(f"method.{name}" for name in fields), f"method.text is {method.text}")
    for name, omega in zip(ADAPTERS, method.omegas, strict=True):
        if name not in method.acting:
            of_edge = ("edge_threshold",) if name == "edge" else ()
            fields = (f"{name}_adapter", *of_edge, *([f"omega_{name}"] if omega else []))
            why = f"method.adapter_share={method.adapter_share} of {method.sampled_steps} steps is none"
            yield Idle(tuple(f"method.{field}" for field in fields), why if omega else f"method.omega_{name} is 0")
    if not any(method.omegas):
        yield Idle(("method.adapter_share",), "no adapter has a weight")


COMPONENTS = (
    Generator(
        name="souldiffuser",
        settings=SoulDiffuserSettings,
        needs=("z", "c"),
        wants=_wants,
        draws=True,
        parts=lambda cfg: DIFFUSION,
        together=("method.omega_edge", "method.omega_colour", "method.adapter_share"),
        captions=lambda cfg: bool(cfg.method.text != "direct"),
        note="built from README and figure; no paper or code public",
        rules=_rules,
        idle=_idle,
        build=Later("nd.generate.souldiffuser.generator:build"),
    ),
)
