"""One override, read with Hydra's own parser."""

from __future__ import annotations

from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parsed(text: str) -> Override:
    """Return what ``key=value`` says.

    Args:
        text: one override, as given on the command line.

    Returns:
        Hydra's override: key, value or sweep, and how it is set.

    Raises:
        HydraException: text that Hydra's grammar does not know.
    """
    return _parser().parse_override(text)
