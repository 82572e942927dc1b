"""The report: whole in itself, honest in which images it shows, true to the runs."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers_results import N_IMAGES, SIDE, config, fake_images, fake_scores, fake_stimuli
from PIL import Image

from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluation.scores import evenly_ranked
from nd.tables import report
from nd.tables.curve_charts import tuning_charts
from nd.tables.gallery import cell_side, gallery, grid_image
from nd.tables.heat_maps import contrast, heat_map, table_maps, tuning_maps
from nd.tables.learning_curves import Curve, Learning, Stage
from nd.tables.line_chart import N_COLOURS, Line, LineChart
from nd.tables.report import write_report
from nd.tables.score_chart import Axis, score_charts
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
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert not {"iframe", "object", "embed"} & set(reader.seen)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|\bimport\b", page)
    assert "content=\"default-src 'none'; img-src data:; " in page  # a browser would refuse any request
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
    first = re.search(r"<img [^>]*data:image/png;base64,([^\"]+)", html.read_text(encoding="utf-8"))
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
    assert "Learning curves" in reader.text
    assert {"decoded & guided, x", "y"} <= set(reader.text)  # one heading for both targets of the same rows
    assert page.count('aria-label="z, fine-tuning: ') == page.count('aria-label="c, fine-tuning: ') == 4
    assert "total: 0.5 at 1, 0.25 at 2, from 0.25 to 0.5." in page
    assert "never of test images" in page
    assert "Learning curves" not in write_report(table, tmp_path, "nd run")[0].read_text(encoding="utf-8")


def test_images_of_a_table_of_retrieval_alone_are_ranked_by_their_first_score(table: Table) -> None:
    columns = [Column(metric="retrieval_c")]
    rows = [
        replace(row, per_image={n.replace("pixcorr", "pixcorr_decoded"): v for n, v in row.per_image.items()})
        for row in table.rows
    ]
    shown = gallery(replace(table, spec=replace(table.spec, columns=columns), rows=rows), n_shown=3)
    assert (shown.image_ids, shown.score_title) == ([7, 3, 0], "pixcorr_decoded")


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


def test_every_heading_of_the_page_is_in_its_contents(table: Table, tmp_path: Path) -> None:
    page = write_report(table, tmp_path / "results", "nd run")[0].read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([^"]+)" aria-labelledby="([^"]+)"><h2 id="([^"]+)">', page)
    assert [f"#{one}" for one, *_ in sections] == re.findall(
        r'<a href="(#[^"]+)">', page.split("<nav")[1].split("</nav")[0]
    )
    assert all(labelled == heading == f"{one}-heading" for one, labelled, heading in sections)
    assert {"scores", "images", "browser", "charts", "strips", "tuning", "costs", "provenance"} <= {
        s[0] for s in sections
    }


def test_tables_and_images_can_be_read_without_seeing_them(table: Table, tmp_path: Path) -> None:
    page = write_report(table, tmp_path / "results", "nd run")[0].read_text(encoding="utf-8")
    assert len(re.findall("<table", page)) == len(re.findall("<caption", page))
    assert not re.findall(r"<th(?! scope=)[ >]", page)
    images = re.findall(r"<img [^>]*>", page)
    assert images
    assert all(re.search(r' alt="[^"]+"', image) for image in images)
    assert 'alt="decoded &amp; guided, image 7: PixCorr 0.70"' in page
    assert not re.findall(r'<svg(?![^>]*role="img"[^>]*aria-label="[^"]+")', page)
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    labelled = re.sub(r"<label.*?</label>", "", page, flags=re.DOTALL)
    assert re.findall(r"<(?:select|input)(?![^>]*hidden)", labelled) == []


def test_debug_sizes_are_marked(table: Table, tmp_path: Path) -> None:
    words = "Made in debug sizes: the numbers mean nothing."
    assert words not in write_report(table, tmp_path / "results", "nd run")[0].read_text(encoding="utf-8")
    table.rows[1].entry.cfg.debug.name = "fast"
    assert words in write_report(table, tmp_path / "results", "nd run")[0].read_text(encoding="utf-8")
    assert words in table.title


# ---- charts


def test_score_charts_place_means_intervals_and_chance(table: Table) -> None:
    first, second = score_charts(table)
    (mark,) = first.bars[0].marks
    assert (mark.value, mark.interval) == ("0.350", "[0.340, 0.370]")
    axis = Axis.over([0.34, 0.35, 0.37])
    assert (mark.lo, mark.mean) == (axis.place(0.34), axis.place(0.35))
    assert mark.lo + mark.width == pytest.approx(axis.place(0.37), abs=0.01)
    assert (first.chance, second.chance_text) == (None, "50.0%")
    wide = Axis.over(
        [0.5, *(v for row in table.rows for v in (row.run.scores["two_way_low"].lo, row.run.scores["two_way_low"].hi))]
    )
    assert second.chance == wide.place(0.5)
    assert all(0 <= place <= 100 for place, _ in second.ticks)
    assert [bar.role for bar in first.bars] == ["method", "oracle", "floor"]


def test_the_tuning_chart_marks_what_was_chosen() -> None:
    (chart,) = tuning_charts(TUNING)
    lines = {line.name: line for line in chart.lines}
    assert list(lines) == ["eta 0.1", "eta 0.2", "no guidance"]
    np.testing.assert_allclose(lines["eta 0.1"].points, [[0.1, 0.51], [0.3, 0.53]])
    assert (lines["eta 0.1"].ring, lines["eta 0.2"].ring, lines["no guidance"].level) == (None, 0.3, True)
    assert chart.ring_name == "chosen: kappa 0.3, eta 0.2"
    assert str(chart.svg).count('class="ring"') == 1
    assert len(tuning_charts(TUNING | {"oracle_points": TUNING["points"]})) == 2


def test_charts_of_lines_are_drawn_where_their_numbers_are() -> None:
    chart = LineChart(
        "t <&", "x", "y", [Line("a <b>", [(0, 0.0), (1, 1.0), (2, float("nan"))]), Line("b", [(0, 0.5)], level=True)]
    )
    root = ElementTree.fromstring(str(chart.svg))
    points = root.find("polyline").get("points").split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x1 > x0
    assert y1 < y0  # up is more
    level = float(re.match(r"M\d+ ([\d.]+)H", root.find("path[@class='c1 level']").get("d"))[1])
    assert level == pytest.approx((y0 + y1) / 2, abs=0.2)
    assert root.get("aria-label") == "t <&. y over x. a <b>: 0 at 0, 1 at 1, from 0 to 1. b: 0.5."
    assert ElementTree.fromstring(str(LineChart("none", "x", "y", [Line("a", [])]).svg)).findall("polyline") == []
    log = LineChart("l", "x", "y", [Line("a", [(1, 0.0), (10, 0.0), (100, 1.0)])], log_x=True)
    x = [
        float(point.split(",")[0])
        for point in ElementTree.fromstring(str(log.svg)).find("polyline").get("points").split()
    ]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)


def test_maps_hold_the_scores_of_rows_that_lie_on_a_grid(table: Table, tmp_path: Path) -> None:
    assert table_maps(table) == []
    rows, entries = [], []
    for number, (kappa, eta, seed) in enumerate(
        [(0.1, 0.5, 0), (0.1, 0.9, 0), (0.3, 0.5, 0), (0.0, 0.5, 0), (0.9, 0.9, 1)]
    ):
        cfg = config(tmp_path / "grid")
        cfg.guidance.kappa, cfg.guidance.eta, cfg.seed = kappa, eta, seed
        fake_scores(cfg, {"pixcorr": np.full(N_IMAGES, number / 10)})
        rows.append(Row(label=f"row {number}"))
        entries.append(Entry(rows[-1], "subj01", cfg))
    grid = collect(replace(table.spec, rows=rows, paired=[], columns=table.columns[:1], images=[]), entries, "nd run")
    (found,) = table_maps(grid)  # another seed is no point of it
    assert found.title == "PixCorr ↑"
    assert (found.kappas, found.etas) == ([0.1, 0.3], [0.5, 0.9])  # nothing is guided at kappa 0
    texts = [[cell and cell.text for cell in line] for line in found.cells]
    assert texts == [["0.000", "0.200"], ["0.100", None]]
    assert [cell.best for cell in found.cells[0]] == [False, True]
    assert found.cells[0][0].interval == "-0.010 – 0.020"
    decoded, truth = tuning_maps(TUNING | {"oracle_points": TUNING["points"]})
    assert [[cell.text for cell in line] for line in decoded.cells] == [["0.510", "0.530"], ["0.520", "0.560"]]
    assert truth.title == "pixcorr, true features (oracle)"


def test_text_on_maps_can_be_read() -> None:
    values = {(float(k), float(e)): (10 * k + e) / 100 for k in range(1, 10) for e in range(10)}
    cells = [cell for line in heat_map("t", values, Column(metric="x")).cells for cell in line]
    assert min(contrast(cell.colour, cell.ink) for cell in cells) >= 4.5
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's well-known grey that fails


def test_colours_of_the_page_can_be_read() -> None:
    style = (Path(report.__file__).parent / "report.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}, #[0-9a-f]{6})\)", style))
    for side in (0, 1):
        colour = {name: pair.split(", ")[side] for name, pair in pairs.items()}
        for text in ("ink", "soft", "link"):
            assert contrast(colour[text], colour["paper"]) >= 4.5, (text, side)
            assert contrast(colour[text], colour["wash"]) >= 4.5, (text, side)
        for mark in ("method", "reference", "oracle", "control", "floor", *(f"c{k}" for k in range(N_COLOURS))):
            assert contrast(colour[mark], colour["paper"]) >= 3, (mark, side)
        for role in ("reference", "oracle", "control", "floor"):
            assert contrast(colour[role], colour["on-mark"]) >= 4.5, (role, side)
