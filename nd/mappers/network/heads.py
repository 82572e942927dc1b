"""What is made of the shared space for one part of a target."""

from __future__ import annotations

from nd.config import NetworkConfig
from nd.mappers.network.head import Head, HeadOutput
from nd.mappers.network.latent_head import LatentHead
from nd.mappers.network.parts import Part
from nd.mappers.network.token_head import TokenHead

__all__ = ["Head", "HeadOutput", "build_head"]


def build_head(config: NetworkConfig, part: Part, variant: str = "nd", aux_width: int = 0) -> Head:
    """The head of a part, of tokens or of a latent map; the same in both variants.

    aux_width: numbers of a token that a latent map's auxiliary head makes; 0: it has none. Tokens ignore it.
    Raises UserError for a map that ``config.decoder_channels`` cannot decode to.
    """
    return LatentHead(config, part, aux_width) if part.is_map else TokenHead(config, part)
