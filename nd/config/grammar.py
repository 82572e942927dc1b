"""One override, read with Hydra's own parser."""

from __future__ import annotations

import copy
from functools import cache, lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


@lru_cache(maxsize=4096)
def _read(text: str) -> Override:
    return _parser().parse_override(text)


def parsed(text: str) -> Override:
    """Return what ``key=value`` says; a text is read once, rows of a table and jobs of a sweep share most.

    Args:
        text: one override, as given on the command line.

    Returns:
        Hydra's override: key, value or sweep, and how it is set.

    Raises:
        HydraException: text that Hydra's grammar does not know.
    """
    return copy.deepcopy(_read(text))
