"""Fixtures shared by the tests of all parts."""

from __future__ import annotations

import pytest

from nd.schema import BackboneConfig


@pytest.fixture(scope="session")
def tiny_backbone_config(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    """A tiny untrained backbone in the real layout, built once; see helpers_backbone."""
    from helpers_backbone import tiny_backbone

    return tiny_backbone(tmp_path_factory.mktemp("backbone"))
