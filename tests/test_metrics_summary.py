"""Scores as text: numbers stand below each other, however long the names are."""

from __future__ import annotations

import pytest

from nd.evaluation.scores import score_table
from nd.metrics.measures import columns

LONG = "consistency_feature_variance"


def lines(*names: str) -> list[str]:
    score = {"mean": 0.25, "lo": 0.125, "hi": 0.5, "chance": 0.5, "better": "higher"}
    protocol = {"name": "nd", "version": 1}
    summary = {"protocol": protocol, "n_images": 3, "n_repeats": 2, "metrics": dict.fromkeys(names, score)}
    return score_table(summary).splitlines()


@pytest.mark.parametrize(("names", "place"), [(("ssim", LONG), 2 + 28 + 1), (("pixcorr", "ssim"), 2 + 20 + 1), ((), 0)])
def test_numbers_stand_below_each_other(names: tuple[str, ...], place: int) -> None:
    head, *rows = lines(*names)
    assert head == "protocol nd v1: 3 images, 2 repeats, 95% intervals over images"
    assert [row[:place].strip() for row in rows] == list(names)
    assert {row[place:] for row in rows} <= {" 0.2500  [0.1250, 0.5000]  up    chance 0.50"}


def test_every_metric_has_a_space_after_its_name() -> None:
    _, *rows = lines(*columns())
    assert {row.index("0.2500") for row in rows} == {2 + max(map(len, columns())) + 2}
