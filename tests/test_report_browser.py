"""The page in Chromium: it sorts, filters, shows the right image, asks for nothing, fits a phone, turns dark.

Needs a Chromium (ND_CHROMIUM, or one of that name on the PATH); ND_AXE may name axe-core's axe.min.js.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_browser import CHROMIUM, Browser, Page, visit
from helpers_results import N_IMAGES, SIDE, config, fake_scores, fake_stimuli
from test_report_images import REPEATS, images_for, write_images

from nd.data.prepared import Stimuli, stimuli_path
from nd.tables.report import write_report
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import Table, collect

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: install it, or set ND_CHROMIUM to its path")

TOOLS = """
globalThis.all = (what) => [...document.querySelectorAll(what)];
globalThis.drawn = (what) => all(what).every((canvas) => canvas.dataset.drawn === canvas.dataset.tile);
globalThis.pixels = (canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
};
globalThis.images = () => all(".card h3").map((head) => Number(/image (\\d+)/.exec(head.textContent)[1]));
globalThis.count = () => document.getElementById("image-count").textContent;
globalThis.rows = () => all("#score-table tbody tr").filter((row) => !row.hidden)
  .map((row) => row.cells[0].firstChild.textContent);
globalThis.sorts = () => all("#score-table thead th").map((head) => head.getAttribute("aria-sort"));
globalThis.set = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
globalThis.control = (name) => document.querySelector(`#browser-controls [name=${name}]`);
globalThis.focused = () => [document.activeElement.dataset.method, document.activeElement.dataset.image];
undefined;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Three rows of noise images; distance falls where PixCorr rises."""
    root = tmp_path_factory.mktemp("table")
    rows = [Row(label="first & guided"), Row(label="second"), Row(label="floor", role="floor")]
    spec = TableSpec(
        name="tiny", folder=root, title="T", experiment="scenes", subjects=["subj01"], rows=rows, images=["second"],
        columns=[
            Column(metric="pixcorr", name="PixCorr"), Column(metric="feature_distance", name="distance"),
            Column(metric="two_way_low", name="low", percent=True),
        ],
    )  # fmt: skip
    configs = [config(root) for _ in rows]
    configs[1].guidance.kappa, configs[2].method.generator = 0.0, "mean_image"
    for number, cfg in enumerate(configs):
        fake_stimuli(cfg)
        write_images(cfg, images_for(number), np.arange(N_IMAGES))
        ramp = (np.arange(N_IMAGES) + number) / 10
        scores = {"pixcorr": ramp, "feature_distance": 2 - ramp, "two_way_low": np.where(ramp > 0.45, 0.7, 0.6)}
        fake_scores(cfg, scores, n_repeats=REPEATS)
    return collect(spec, [Entry(row, "subj01", cfg) for row, cfg in zip(rows, configs, strict=True)], "nd run")


@pytest.fixture(scope="module")
def path(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(table, tmp_path_factory.mktemp("page"), "nd run")[0]


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    with visit(browser, path) as opened:
        opened.run(TOOLS)
        opened.wait("all('#cards .tile').length")
        yield opened


def test_tables_sort_and_filter(page: Page) -> None:
    def click(k: int) -> list[str]:
        page.run(f"all('#score-table thead button')[{k}].click()")
        rows: list[str] = page.run("rows()")
        return rows

    falling = ["floor", "second", "first & guided"]
    assert click(2) == falling
    assert page.run("sorts()") == ["none", "none", "descending", "none", "none"]
    assert click(2) == falling[::-1]
    assert page.run("sorts()") == ["none", "none", "ascending", "none", "none"]
    assert click(3) == falling  # lower is better
    assert click(0) == ["first & guided", "floor", "second"]
    page.run("set(document.getElementById('row-filter'), 'FLOOR')")
    assert page.run("[rows(), document.getElementById('row-count').textContent]") == [["floor"], "1 of 3 rows"]
    assert page.run("all('#score-table tfoot tr').map((row) => row.cells[0].textContent)") == ["chance"]


def test_every_tile_shows_the_image_it_names(page: Page, table: Table) -> None:
    for k in range(N_IMAGES):  # tiles are drawn where the reader looks
        page.run(f"all('.card')[{k}].scrollIntoView()")
        page.wait(f"drawn('.card:nth-child({k + 1}) canvas')")
    found = page.run(
        "all('#cards .tile').map((tile) => [tile.getAttribute('aria-label'), pixels(tile.querySelector('canvas'))])"
    )
    images = page.run("images()")
    assert images == [7, 6, 5, 4, 3, 2, 1, 0]
    stimuli = Stimuli(stimuli_path(table.rows[0].entry.cfg)).images(np.arange(N_IMAGES))
    assert len(found) == 4 * N_IMAGES
    for place, (label, values) in enumerate(found):
        image_id, row = images[place // 4], place % 4 - 1
        wanted = stimuli[image_id] if row < 0 else images_for(row)[image_id, 0]
        np.testing.assert_array_equal(np.reshape(values, (SIDE, SIDE, 4))[..., :3], wanted, label)
        score = "" if row < 0 else f" {(image_id + row) / 10:.3f}: PixCorr"
        assert label == f"{['stimulus', 'first & guided', 'second', 'floor'][row + 1]}{score}, image {image_id}"


def test_images_are_ordered_and_filtered(page: Page) -> None:
    def after(**fields: object) -> list[Any]:
        for name, value in fields.items():
            page.run(f"set(control('{name}'), '{value}')")
        found: list[Any] = page.run("[images(), count()]")
        return found

    assert after(order="worst") == [[0, 1, 2, 3, 4, 5, 6, 7], "8 of 8 images."]
    from_the_median = after(order="median")[0]
    assert [set(from_the_median[k : k + 2]) for k in range(0, 8, 2)] == [{3, 4}, {2, 5}, {1, 6}, {0, 7}]
    assert after(order="best", metric=1) == [[7, 6, 5, 4, 3, 2, 1, 0], "8 of 8 images."]  # lower is better
    assert after(least=1.5) == [[4, 3, 2, 1, 0], "5 of 8 images."]  # the second row has 1.9 - k / 10
    assert after(metric=2, least=65) == [[4, 5, 6, 7], "4 of 8 images."]  # in percent, as it is shown
    assert after(least="", order="id", image="3, 5") == [[3, 5], "2 of 8 images."]
    page.run("control('method').click()")  # the first row is not wanted
    assert page.run("all('.card')[0].querySelectorAll('.tile').length") == 3
    page.run("document.querySelector('#browser-controls [type=reset]').click()")
    page.wait("images().length === 8 && all('.card')[0].querySelectorAll('.tile').length === 4")
    assert page.run("images()") == [7, 6, 5, 4, 3, 2, 1, 0]


def test_keys_lead_through_images_and_enlarge_them(page: Page) -> None:
    assert page.run("all('#cards .tile').filter((tile) => tile.tabIndex === 0).length") == 1
    page.run("all('#cards .tile')[0].focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert page.run("focused()") == ["1", "1"]  # the second row, of the image with the second rank
    tip = "second, image 6\nPixCorr 0.700\ndistance 1.300\nlow 70.0%"
    assert page.run("[document.getElementById('tip').hidden, document.getElementById('tip').textContent]") == [
        False,
        tip,
    ]
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")
    page.press("Enter")
    for key, image_id, row in (("", 6, 1), ("ArrowRight", 5, 1), ("ArrowDown", 5, 2)):
        page.press(*filter(None, [key]))
        check_large(page, image_id, row)
    page.press("Escape")
    assert page.run("document.getElementById('large').open") is False
    assert page.run("focused()") == ["1", "1"]


def check_large(page: Page, image_id: int, row: int) -> None:
    """One image is shown large: the right one, with its scores."""
    label = ["first & guided", "second", "floor"][row]
    page.wait("document.getElementById('large').open && drawn('#large canvas')")
    texts = page.run("['large-title', 'large-label'].map((id) => document.getElementById(id).textContent)")
    assert texts == [f"image {image_id}, rank {8 - image_id} of 8", label]
    values = page.run("pixels(document.getElementById('large-made'))")
    np.testing.assert_array_equal(np.reshape(values, (SIDE, SIDE, 4))[..., :3], images_for(row)[image_id, 0])
    score = f"{(image_id + row) / 10:.3f}"
    assert page.run("all('#large-scores tr')[0].textContent") == f"PixCorr{score}"
    said = page.run("document.getElementById('large-made').getAttribute('aria-label')")
    assert said.startswith(f"{label}, image {image_id}, PixCorr {score}, distance")


def test_hovering_shows_all_scores(page: Page) -> None:
    page.hover(".card:nth-child(1) .tile:nth-child(2)")
    page.wait("!document.getElementById('tip').hidden")
    assert page.run("document.getElementById('tip').textContent") == (
        "first & guided, image 7\nPixCorr 0.700\ndistance 1.300\nlow 70.0%"
    )


@pytest.mark.parametrize("width", [390, 1400])
def test_a_phone_shows_all_of_it(browser: Browser, path: Path, width: int) -> None:
    with visit(browser, path, width) as page:
        page.run(TOOLS)
        assert page.run("[innerWidth, document.scrollingElement.scrollWidth]") == [width, width]
        outside = "all('main *').filter((one) => !one.closest('.scroll, .hidden, #tip, dialog') &&"
        outside += " one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 99))"
        assert page.run(outside) == []
        page.run("document.querySelector('#score-table').closest('.scroll').scrollLeft = 60")
        left = "getBoundingClientRect().left"
        places = page.run(
            f"['#score-table tbody th', '#scores .scroll'].map((one) => document.querySelector(one).{left})"
        )
        assert places[0] == pytest.approx(places[1], abs=1)  # the first column stays


def test_colours_follow_the_system_or_the_reader(browser: Browser, path: Path) -> None:
    light, dark, paper = "rgb(244, 246, 248)", "rgb(20, 23, 28)", "getComputedStyle(document.body).backgroundColor"
    for prefers_dark, wanted in ((False, [light, light, dark, light]), (True, [dark, light, dark, dark])):
        with visit(browser, path, dark=prefers_dark) as page:
            button, seen = "document.getElementById('theme')", []
            for name in ("auto", "light", "dark", "auto"):
                assert page.run(f"{button}.textContent") == f"colours: {name}"
                seen.append(page.run(paper))
                page.run(f"{button}.click()")
            assert seen == wanted
            page.run("localStorage.clear()")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(browser: Browser, path: Path, dark: bool) -> None:
    axe = os.environ.get("ND_AXE", "")
    if not axe:
        pytest.skip("needs axe-core: set ND_AXE to its axe.min.js")
    with visit(browser, path, dark=dark) as page:
        page.run(Path(axe).read_text(encoding="utf-8") + "; undefined")
        page.run("document.querySelector('#cards .tile').click()")  # the dialog too, at the second look
        for _ in range(2):
            found = page.run(
                "axe.run(document).then((result) => [result.passes.length, "
                "result.violations.map((one) => `${one.impact} ${one.id} ${one.nodes[0].html}`)])"
            )
            assert found[1] == []
            assert found[0] > 20
            page.press("Escape")
