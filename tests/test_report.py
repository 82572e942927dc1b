"""The report: whole in itself, honest in which images it shows, true to the runs."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers_results import N_IMAGES, SIDE, config, fake_images, fake_scores, fake_stimuli
from PIL import Image

from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.tables.gallery import cell_side, evenly_ranked, gallery, grid_image
from nd.tables.learning_curves import Curve, Learning, Stage
from nd.tables.plots import score_plot, svg, tuning_plot
from nd.tables.report import write_report
from nd.tables.specs import Column, Entry, Pair, Row, TableSpec
from nd.tables.table import Table, collect

ROWS = [
    Row(label="decoded & guided"),
    Row(label="truth", role="oracle", overrides=["features=oracle"]),
    Row(label="mean", role="floor"),
]
TUNING = {
    "metric": "pixcorr", "n_images": 20, "chosen": {"kappa": 0.3, "eta": 0.2},
    "points": [
        {"kappa": 0.0, "eta": 0.0, "pixcorr": 0.5},
        *({"kappa": k, "eta": e, "pixcorr": 0.5 + k * e} for k in (0.1, 0.3) for e in (0.1, 0.2)),
    ],
}  # fmt: skip
VOID = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Three finished rows; image k of the first has PixCorr k / 10."""
    (tmp_path / "tuning.json").write_text(json.dumps(TUNING), encoding="utf-8")
    spec = TableSpec(
        name="tiny", folder=tmp_path, title="A <b> & c", experiment="scenes", subjects=["subj01"],
        columns=[Column(metric="pixcorr", name="PixCorr"), Column(metric="two_way_low", name="low", percent=True)],
        rows=ROWS, images=["decoded & guided", "truth"], curve="tuning.json",
        paired=[Pair(a="decoded & guided", b="mean", metrics=["pixcorr"])],
    )  # fmt: skip
    configs = [config(tmp_path) for _ in ROWS]
    configs[1].features, configs[2].method.generator = "oracle", "mean_image"
    for repeats, cfg in zip((3, 2, 1), configs, strict=True):
        fake_stimuli(cfg)
        fake_images(cfg, repeats)
        ramp = np.arange(N_IMAGES) / 10
        fake_scores(cfg, {"pixcorr": ramp, "two_way_low": 1 - ramp})
    entries = [Entry(row, "subj01", cfg) for row, cfg in zip(ROWS, configs, strict=True)]
    return collect(spec, entries, "nd run")


class Reader(HTMLParser):
    """Collects tags, what they point to, and whether every one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_is_whole_in_itself(table: Table, tmp_path: Path) -> None:
    html, png = write_report(table, tmp_path / "results", "nd run table=tiny")
    page = html.read_text(encoding="utf-8")
    reader = read(page)
    assert reader.links
    assert all(link.startswith("data:image/") for link in reader.links)
    assert not {"script", "link", "iframe", "object"} & set(reader.seen)
    assert not re.search(r"url\(|@import", page)
    assert Image.open(png).width > 500
    text = " ".join(reader.text)
    for wanted in (
        "A <b> & c", "simulated fMRI", "decoded & guided", "oracle", "floor", "PixCorr\xa0↑", "50.0%",
        "nd run table=tiny",
        "a ceiling, not decoding", "Guidance tuned on validation images", "decoded & guided minus mean", "numpy",
        "protocol scenes v1; 8 test images (set f00)",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_pictures_are_those_of_the_runs_beside_their_stimuli(table: Table, tmp_path: Path) -> None:
    shown = gallery(table, n_shown=3)
    assert shown.labels == ["stimulus", "decoded & guided", "truth (oracle)"]
    assert shown.image_ids == [7, 3, 0]  # the best, the middle, the worst by PixCorr
    assert shown.ranks == [1, 5, 8]
    assert shown.scores == [[None] * 3, [0.7, 0.3, 0.0], [0.7, 0.3, 0.0]]
    wanted = Stimuli(stimuli_path(table.rows[0].entry.cfg)).images(np.array(shown.image_ids))
    np.testing.assert_array_equal(shown.images[0], wanted)
    assert (shown.images[1] == 0).all()  # the first repeat is black, later ones are not
    assert "not picked by eye" in shown.rule
    html, _ = write_report(table, tmp_path / "results", "nd run")
    first = re.search(r"data:image/png;base64,([^\"]+)", html.read_text(encoding="utf-8"))
    assert first is not None
    best = gallery(table).images[0][0]
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(first[1])))), best)


def test_images_are_spread_over_all_ranks() -> None:
    values = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    assert evenly_ranked(values, 3).tolist() == [1, 2, 0]
    assert evenly_ranked(values, 9).tolist() == [1, 3, 2, 4, 0]
    assert evenly_ranked(np.zeros(4), 2).tolist() == [0, 3]


@pytest.mark.parametrize(("side", "wanted"), [(28, 112), (64, 128), (6, 120), (512, 120)])
def test_pixels_are_shown_alike(side: int, wanted: int) -> None:
    assert cell_side(side) == wanted


def test_the_grid_holds_every_picture(table: Table) -> None:
    shown = gallery(table, n_shown=2)
    image = np.array(grid_image(shown, "title"))
    cell = cell_side(SIDE)
    corner = image[40 : 40 + cell, 210 : 210 + cell]
    np.testing.assert_array_equal(corner[:: cell // SIDE, :: cell // SIDE], shown.images[0][0])


def test_trained_networks_show_how_they_were_trained(table: Table, tmp_path: Path) -> None:
    stage = Stage("fine-tuning", [Curve({"total": [(1, 0.5), (2, 0.25)]}, {"correlation": [(2, 0.1)]}, kept=2)])
    learnings = [Learning(rows, target, [stage]) for rows in (("decoded & guided", "x"), ("y",)) for target in "zc"]
    page = write_report(table, tmp_path / "results", "nd run", learnings)[0].read_text(encoding="utf-8")
    reader = read(page)
    assert all(link.startswith("data:image/") for link in reader.links)
    assert "Learning curves" in reader.text
    assert {"decoded & guided, x", "y"} <= set(reader.text)  # one image for both targets of the same rows
    assert page.count('alt="learning curves of ') == 2
    assert "never of test images" in page
    assert "Learning curves" not in write_report(table, tmp_path, "nd run")[0].read_text(encoding="utf-8")


def test_a_table_without_pictures_says_so(table: Table) -> None:
    with pytest.raises(UserError, match=r"shows no images\. Name rows of it in its spec as `images:`"):
        gallery(replace(table, spec=replace(table.spec, images=[])))


def test_a_curve_that_is_no_curve_is_refused(table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tuning.json").write_text('{"points": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"tuning\.json is no tuning record: KeyError\('metric'\)"):
        write_report(table, tmp_path / "results", "nd run")
    assert not (tmp_path / "results").exists()
    (tmp_path / "tuning.json").unlink()
    html, _ = write_report(table, tmp_path / "results", "nd run")
    assert "Guidance tuned" not in html.read_text(encoding="utf-8")
    assert "tuning.json does not exist; the report is without its tuning curve" in caplog.text


def test_plots_are_the_same_every_time(table: Table) -> None:
    assert svg(score_plot(table)) == svg(score_plot(table))
    assert svg(tuning_plot(TUNING)) == svg(tuning_plot(TUNING))
    assert [len(tuning_plot(t).axes) for t in (TUNING, TUNING | {"oracle_points": TUNING["points"]})] == [1, 2]


def test_the_tuning_curve_marks_what_was_chosen() -> None:
    (panel,) = tuning_plot(TUNING).axes
    lines = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in panel.lines}
    assert set(lines) == {"eta 0.1", "eta 0.2", "no guidance", "chosen: kappa 0.3, eta 0.2"}
    np.testing.assert_allclose(lines["eta 0.1"], [[0.1, 0.3], [0.51, 0.53]])
    np.testing.assert_allclose(lines["chosen: kappa 0.3, eta 0.2"], [[0.3], [0.56]])


def test_score_plot_shows_means_and_chance(table: Table) -> None:
    first, second = score_plot(table).axes
    points = [line.get_xdata()[0] for line in first.lines if line.get_marker() == "o"]
    assert points == pytest.approx([0.35] * 3)
    dashed = [line.get_xdata()[0] for line in second.lines if line.get_linestyle() == "--"]
    assert dashed == [50.0]
