"""SoulDiffuser's generator: decoded z, c, edge and colour to images, R per image, for one run or a sweep over omega.

No paper and no code of it are public; what is built here is what README and figure describe
(LQQME/SoulDiffuser@160a2fd:README.md, Figure/nc-31.jpg), ``variant=figure``: sampling starts from the noised latent,
the words decoded from the ventral stream condition the UNet, and adapters for edges and colours add to its features.

B images, R repeats, C h w latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.files import write_text
from nd.generate.base import Reconstructions
from nd.generate.guided_diffusion import GuidedDiffusion, Previews, previews_of
from nd.generate.image_to_image import check_shape, unguided
from nd.generate.sampler import Preview, Sampled
from nd.generate.souldiffuser.adapters import (
    GREY,
    RGB,
    AdaptedBackbone,
    check_adapter,
    colour_image,
    edge_image,
)
from nd.generate.souldiffuser.components import ADAPTERS, SoulDiffuserSettings
from nd.generate.souldiffuser.sampler import AdaptedSampler, acting_in, image_features, point_of
from nd.generate.souldiffuser.semantics import TrainingCaptions, as_csv
from nd.targets.maps import ColourMosaic, EdgeMap

SHAPES = {"edge": EdgeMap.shape, "colour": ColourMosaic.shape}
CHANNELS = {"edge": (GREY, RGB), "colour": (RGB,)}


class SoulDiffuser(GuidedDiffusion):
    """Words and adapters' features of a batch, once for all points of a sweep; then the sampler."""

    steered_by = "method.omega"
    sampler: AdaptedSampler

    def __init__(
        self, sampler: AdaptedSampler, cfg: Config, captions: TrainingCaptions | None, previews: Previews | None
    ) -> None:
        """Take a sampler.

        Args:
            sampler: of all points of a sweep.
            cfg: of one of them.
            captions: what the UNet is told instead of the decoded condition; None: that condition itself.
            previews: of the first batch, its captions beside them.
        """
        super().__init__(sampler, cfg.seed, cfg.method.n_repeats, previews, cfg.trainer.memory_gb)
        assert isinstance(cfg.method, SoulDiffuserSettings)
        self.method, self.captions = cfg.method, captions
        self.acting = [name for name in ADAPTERS if any(name in acting_in(point) for point in sampler.points)]

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of each point, with the caption that stands for each image where there is one.

        Args:
            image_ids: B stimulus numbers.
            features: z (B, C, h, w), c (B, T, D) and, where an adapter acts, edge (B, 64, 64), colour (B, 8, 8, 3).
        """
        check_shape("c", features["c"], tuple(self.sampler.denoise.uncond_1TD.shape[1:]), "the UNet of this backbone")
        if self.captions is None:
            return super().__call__(image_ids, features)
        c, said = self.captions(image_ids, features["c"])
        if self.previews is not None:
            write_text(self.previews.folder / "captions.csv", as_csv(image_ids, said))
        nearest = [one.captions[0] for one in said]  # of a mixture, what weighs most
        return [replace(made, captions=nearest) for made in super().__call__(image_ids, {**features, "c": c})]

    def _sampled(self, features: Mapping[str, Tensor], noise: Tensor, preview: Preview | None) -> list[Sampled]:
        adapters = {name: self._features(name, features[name]) for name in self.acting}
        return self.sampler.sample_under(features["z"], features["c"], adapters, noise, preview)

    def _features(self, name: str, decoded: Tensor) -> list[Tensor]:
        """Features of one adapter for each block."""
        check_shape(name, decoded, SHAPES[name], f"the {name} adapter")
        adapter = getattr(self.sampler.backbone, f"{name}_adapter")
        side = self.sampler.backbone.config.image_size
        if name == "colour":
            return image_features(adapter, colour_image(decoded, side))
        threshold, channels = self.method.edge_threshold, int(adapter.config["in_channels"])
        edges = (decoded > threshold).to(decoded) if threshold else decoded
        return image_features(adapter, edge_image(edges, side, channels))


def build(cfgs: Sequence[Config], device: torch.device) -> SoulDiffuser:
    """Load backbone and adapters on a device and prepare configurations that differ in how adapters act alone.

    Raises:
        UserError: weights that are absent, damaged, or of another width.
    """
    cfg = cfgs[0]
    method = cfg.method
    assert isinstance(method, SoulDiffuserSettings)
    backbone = AdaptedBackbone(cfg.backbone, device, method.edge_adapter, method.colour_adapter)
    _ = backbone.source
    sampler = AdaptedSampler(backbone, unguided(cfg), [point_of(one) for one in cfgs])
    captions = None if method.text == "direct" else TrainingCaptions(cfg, backbone)
    made = SoulDiffuser(sampler, cfg, captions, previews_of(cfg, backbone))
    for name in made.acting:
        check(backbone, name)
    return made


def check(backbone: Backbone, name: str) -> None:
    """Raise UserError where an adapter does not belong to a backbone."""
    check_adapter(
        getattr(backbone, f"{name}_adapter"),
        f"method.{name}_adapter",
        backbone.unet,
        backbone.config.image_size,
        backbone.latent_shape[1],
        CHANNELS[name],
    )
