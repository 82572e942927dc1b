"""What the generator of Ozcelik et al. declares: its settings and what contradicts among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nd.config.components import Generator, Idle
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import MethodConfig
from nd.generate.components import STEERING

if TYPE_CHECKING:
    from nd.config.schema import Config


@dataclass(kw_only=True)
class IcGanSettings(MethodConfig):
    """ic_gan: an instance-conditioned GAN makes an image of the decoded instance features and noise."""

    generator: str = opt("ic_gan", "what turns targets into images")
    weights: str = opt(
        "",
        "G_ema_best<n>.pth of icgan_biggan_imagenet_res256, or safetensors of the same kind of generator",
        identity=False,
        path=True,
        weights=True,
    )
    repeats: int = opt(1, "images made per stimulus, each from its own noise")
    normalise: bool = opt(
        True, "bring decoded instance features to length 1, which the generator was trained with; or as they are"
    )


def _build(cfgs: Sequence[Config], device: Any) -> Any:
    from nd.generate.ic_gan.generator import build

    (cfg,) = cfgs
    return build(cfg, device)


def _rules(cfg: Config) -> Iterator[str]:
    yield from at_least(1, data=cfg.method, names=("repeats",), key="method")


def _idle(cfg: Config) -> Iterator[Idle]:
    fields = (*(f"guidance.{name}" for name in ("kappa", *STEERING)), "trainer.memory_gb", "trainer.compile")
    yield Idle((*fields, "trainer.previews"), "generator ic_gan makes an image in one pass")


COMPONENTS = (
    Generator(
        name="ic_gan",
        settings=IcGanSettings,
        needs=("instance",),
        wants=lambda cfg: ["instance"],
        draws=True,
        rules=_rules,
        idle=_idle,
        build=_build,
    ),
)
