"""Measures of other packages: named in a protocol, scored, in their column, and part of what the protocol is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nd.config import ProtocolConfig
from nd.metrics import measures as module
from nd.metrics.measures import KINDS, MEASURES, Measure, View, columns, measures, measures_of
from nd.metrics.protocol import describe
from nd.metrics.score import score_images

EDGES = Measure("edges", "pixels", score=f"{__name__}:edges", chance=0.0)
HUES = Measure("hues_8", "pair", View(size=8), score=f"{__name__}:hues", better="lower")


def edges(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """How often slopes have the same sign."""
    signs = [(images[..., 1:] > images[..., :-1]).float() for images in (x_BCHW, y_BCHW)]
    return (signs[0] == signs[1]).float().mean((1, 2, 3))


def hues(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Distance of mean colours, of images of 8 pixels."""
    assert x_BCHW.shape[-2:] == y_BCHW.shape[-2:] == (8, 8)
    return (x_BCHW.mean((2, 3)) - y_BCHW.mean((2, 3))).abs().sum(1)


@pytest.fixture
def _plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package has declared two measures."""
    found = {one.name: one for one in (EDGES, HUES)}
    monkeypatch.setattr(module, "external_components", lambda group: found if group == "nd.measures" else {})
    for cached in (measures, columns):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (measures, columns):
        cached.cache_clear()


@pytest.mark.usefixtures("_plug_in")
def test_measures_of_other_packages_are_scored_in_columns_of_their_own() -> None:
    stimuli = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    images = np.stack([stimuli, np.roll(stimuli, 1, 0)], 1)
    plain = ProtocolConfig(network="none", image_size=16)
    protocol = replace(plain, measures=["edges", "hues_8"])
    scores = score_images(images, stimuli, protocol).scores
    assert list(scores) == [name for name in columns() if name in scores]
    assert {*scores} - {*score_images(images, stimuli, plain).scores} == {"edges", "hues_8"}
    tensors = [torch.from_numpy(images[:, r] / np.float32(255)).permute(0, 3, 1, 2) for r in range(2)]
    wanted = [edges(tensor, tensors[0]).numpy() for tensor in tensors]
    np.testing.assert_allclose(scores["edges"], np.mean(wanted, 0), atol=1e-6)
    small = [torch.nn.functional.interpolate(t, (8, 8), mode="bilinear", antialias=True) for t in tensors]
    np.testing.assert_allclose(scores["hues_8"], hues(small[1], small[0]).numpy() / 2, atol=1e-6)
    best = score_images(images, stimuli, replace(protocol, aggregation="best")).scores
    assert (best["edges"].min(), best["hues_8"].max()) == (1, 0), "higher and lower are better as declared"
    assert describe(protocol)["hash"] != describe(plain)["hash"]


@pytest.mark.usefixtures("_plug_in")
def test_other_code_under_one_name_is_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = ProtocolConfig(network="none", measures=["edges"])
    before = describe(protocol)["hash"]
    other = {"edges": replace(EDGES, score="my_package:edges")}
    monkeypatch.setattr(module, "external_components", lambda _: other)
    measures.cache_clear()
    assert describe(protocol)["hash"] != before


def test_every_measure_is_declared_under_its_own_name() -> None:
    for name, measure in (columns() | measures_of(ProtocolConfig())).items():
        assert measure.name == name
        assert measure.kind in KINDS
        assert measure.better in ("higher", "lower")
    assert set(MEASURES) <= set(measures()) <= set(columns())
