"""What the generator of Ozcelik et al. declares: its settings and what contradicts among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nd.config.components import Generator, Idle, Later
from nd.config.fields import opt
from nd.config.schema import MethodConfig
from nd.generate.components import GUIDANCE, SAMPLING, repeats_rule

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


def _idle(cfg: Config) -> Iterator[Idle]:
    yield Idle((*GUIDANCE, *SAMPLING), "generator ic_gan makes an image in one pass")


COMPONENTS = (
    Generator(
        name="ic_gan",
        settings=IcGanSettings,
        needs=("instance",),
        wants=lambda cfg: ["instance"],
        draws=True,
        rules=repeats_rule,
        idle=_idle,
        build=Later("nd.generate.ic_gan.generator:build"),
    ),
)
