"""Rows of a table judged by networks with other weights: refused in the columns that those networks decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_results import N_IMAGES, config, fake_scores

from nd.errors import UserError
from nd.metrics.measures import columns
from nd.tables.rows import networks_of
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import Table, collect

A, B = "0123456789ab", "ba9876543210"
VALUES = np.linspace(0.2, 0.9, N_IMAGES)
NETWORK = {  # of columns by what they begin with, the longest that fits; "": pixels alone
    "pixcorr": "", "ssim": "", "two_way_pixels": "", "label_two_way": "",
    "consistency_pixcorr": "", "consistency_ssim": "", "consistency_feature": "efficientnet_lite0",
    "two_way_": "efficientnet_lite0", "feature_distance": "efficientnet_lite0",
    "brain_mid": "efficientnet_lite0", "brain_high": "efficientnet_lite0",
    "alexnet": "alexnet", "inception": "inception_v3", "clip_l14": "clip_vit_l14", "clip_b32": "clip_vit_b32",
    "effnet_b1v1": "efficientnet_b1_v1", "effnet_b1v2": "efficientnet_b1_v2", "swav": "swav_resnet50",
    "lpips": "lpips", "dreamsim": "dreamsim",
    "caption_meteor": "wordnet", "caption_rouge": "", "caption_clip": "clip_text", "caption_sentence": "sentence_model",
}  # fmt: skip


def wanted(metric: str) -> set[str]:
    name = metric if metric.startswith(("brain_mid", "brain_high")) else metric.removeprefix("brain_")
    begins = max((begin for begin in NETWORK if name.startswith(begin)), key=len)
    return {NETWORK[begins]} - {""}


@pytest.mark.parametrize("metric", columns())
def test_every_column_knows_its_network(metric: str) -> None:
    assert networks_of(metric, {*NETWORK.values()} - {""}) == wanted(metric)
    assert networks_of(metric, []) == set()


def test_an_unknown_column_may_be_of_any_network() -> None:
    assert networks_of("new", ["alexnet", "clip_vit_l14"]) == {"alexnet", "clip_vit_l14"}


def table(root: Path, columns: list[str], *rows: tuple[list[str], dict[str, str] | None]) -> Table:
    """A table of rows that have these scores and whose networks had these weights; None: scores do not say."""
    entries = []
    for number, (metrics, weights) in enumerate(rows):
        cfg, row = config(root), Row(label=f"row {number}")
        cfg.guidance.kappa = float(number)
        facts = {} if weights is None else {"weights": weights}
        fake_scores(cfg, dict.fromkeys(metrics, VALUES), **facts)
        entries.append(Entry(row, "subj01", cfg))
    spec = TableSpec(
        name="tiny", folder=Path(), title="T", experiment="scenes", subjects=["subj01"],
        columns=[Column(metric=metric) for metric in columns], rows=[entry.row for entry in entries],
    )  # fmt: skip
    return collect(spec, entries, "nd run table=tiny")


def test_rows_judged_with_other_weights_are_refused_and_named(tmp_path: Path) -> None:
    metrics = ["pixcorr", "clip_l14_224", "swav_224"]
    other = {"clip_vit_l14": B, "swav_resnet50": A}
    same = {"clip_vit_l14": A, "swav_resnet50": A}
    with pytest.raises(UserError) as caught:
        table(tmp_path, metrics, (metrics, same), (metrics, same), (metrics, other), (metrics, None))
    first, network, *rows, todo = str(caught.value).splitlines()
    assert first == "these rows were judged by the same network with other weights and cannot stand in one column:"
    assert network == "clip_vit_l14, columns clip_l14_224:"
    assert [row.partition(", in ")[0] for row in rows] == [
        f"  - row 0 (subj01): clip_vit_l14 {A}",
        f"  - row 1 (subj01): clip_vit_l14 {A}",
        f"  - row 2 (subj01): clip_vit_l14 {B}",
    ]
    folders = [Path(row.partition(", in ")[2]) for row in rows]
    assert len(set(folders)) == 3
    assert all((folder / "scores.json").is_file() for folder in folders)
    assert todo.startswith("Score them with one set of weights (protocol.weights=<folder>): remove the folders of")


@pytest.mark.parametrize(
    ("columns", "first", "second"),
    [
        (["clip_l14_224"], (["clip_l14_224"], {"clip_vit_l14": A}), (["clip_l14_224"], {"clip_vit_l14": A})),
        (["clip_l14_224"], (["clip_l14_224"], {"clip_vit_l14": A}), (["clip_l14_224"], None)),  # old scores
        (["clip_l14_224"], (["clip_l14_224"], {"clip_vit_l14": A}), (["clip_l14_224"], {"alexnet": B})),
        (["pixcorr"], (["pixcorr", "swav_224"], {"swav_resnet50": A}), (["pixcorr"], {"swav_resnet50": B})),
        (
            ["swav_224", "swav_224_pil"],  # no column in which both stand
            (["swav_224"], {"swav_resnet50": A}),
            (["swav_224_pil"], {"swav_resnet50": B}),
        ),
    ],
)
def test_rows_that_share_no_column_of_other_weights_may_stand(
    columns: list[str],
    first: tuple[list[str], dict[str, str]],
    second: tuple[list[str], dict[str, str] | None],
    tmp_path: Path,
) -> None:
    assert len(table(tmp_path, columns, first, second).rows) == 2


def test_all_networks_are_told_at_once(tmp_path: Path) -> None:
    metrics = ["clip_l14_224", "brain_clip_l14_224", "brain_high"]
    names = ("clip_vit_l14", "efficientnet_lite0")
    with pytest.raises(UserError) as caught:
        table(tmp_path, metrics, (metrics, dict.fromkeys(names, A)), (metrics, dict.fromkeys(names, B)))
    assert "\nclip_vit_l14, columns clip_l14_224, brain_clip_l14_224:\n" in str(caught.value)
    assert "\nefficientnet_lite0, columns brain_high:\n" in str(caught.value)
