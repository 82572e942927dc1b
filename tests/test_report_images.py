"""Images of the page: the right one in its place, all of them, within bounds; repeats, steps, ROIs and costs beside."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_results import N_IMAGES, SIDE, config, fake_scores, fake_stimuli
from numpy.typing import NDArray
from PIL import Image

from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.files import read_json, write_json
from nd.runs.folder import RunFolder
from nd.tables.costs import AT_ONCE, PER_IMAGE, RESIDENT, costs_of
from nd.tables.gallery import gallery
from nd.tables.image_browser import browser, sources_of
from nd.tables.recorded import read_losses, ways_of
from nd.tables.report import page, write_report
from nd.tables.roi_page import RoiImages, page_path, write_page, written_for
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.sprites import ACROSS, QUALITIES, Sheets, Tiles, cell_of, drawn_sheet, most_tiles, side_for
from nd.tables.strips import image_strips
from nd.tables.table import Table, collect

ROWS = [Row(label="a </script><b>"), Row(label="floor", role="floor")]
REPEATS = 3


def images_for(row: int) -> NDArray[np.uint8]:
    """(N, R, H, W, 3), every image of its own: noise that is known by row, image and repeat."""
    return np.random.default_rng(row).integers(0, 256, (N_IMAGES, REPEATS, SIDE, SIDE, 3)).astype(np.uint8)


def write_images(cfg: Config, images: NDArray[np.uint8], ids: NDArray[np.int64]) -> RunFolder:
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as file:
        file["images"], file["image_id"] = images, ids
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two rows; their files hold the images in falling order of ids; the best image of the first is number 7."""
    spec = TableSpec(
        name="tiny", folder=tmp_path, title="T", experiment="scenes", subjects=["subj01"], rows=ROWS,
        columns=[Column(metric="pixcorr", name="PixCorr"), Column(metric="two_way_low", percent=True)],
        images=["a </script><b>"],
    )  # fmt: skip
    configs = [config(tmp_path), config(tmp_path)]
    configs[1].method.generator = "mean_image"
    for number, cfg in enumerate(configs):
        fake_stimuli(cfg)
        write_images(cfg, images_for(number)[::-1], np.arange(N_IMAGES)[::-1])
        ramp = np.arange(N_IMAGES) / 10
        fake_scores(cfg, {"pixcorr": ramp, "two_way_low": np.where(ramp > 0, 1 - ramp, np.nan)}, n_repeats=REPEATS)
    return collect(spec, [Entry(row, "subj01", cfg) for row, cfg in zip(ROWS, configs, strict=True)], "nd run")


def tile_on(sheets: list[NDArray[np.uint8]], number: int, side: int) -> NDArray[np.uint8]:
    """Cut a tile out as the page's script does."""
    sheet, place = divmod(number, ACROSS**2)
    top, left = (cell_of(side) * part for part in divmod(place, ACROSS))
    return sheets[sheet][top : top + side, left : left + side]


def decoded(files: list[bytes]) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


# ---- sheets


def test_tiles_come_back_unchanged_and_equal_ones_are_kept_once() -> None:
    tiles, images = Tiles(SIDE), images_for(0).reshape(-1, SIDE, SIDE, 3)
    many = np.concatenate([images, *([images + np.uint8(k)] for k in range(1, 12))], axis=None).reshape(
        -1, SIDE, SIDE, 3
    )
    numbers = [tiles.add(image) for image in [*many, *images]]
    assert len(tiles.images) == len(many) > ACROSS**2  # more than one sheet
    assert numbers[len(many) :] == numbers[: len(images)]
    sheets = tiles.sheets()
    assert (sheets.kind, sheets.cell, len(sheets.files)) == ("png", 8, 2)
    drawn = decoded(sheets.files)
    for number, image in zip(numbers, [*many, *images], strict=True):
        np.testing.assert_array_equal(tile_on(drawn, number, SIDE), image)


def test_what_does_not_fit_without_loss_becomes_jpeg_that_fits() -> None:
    tiles, smooth = (
        Tiles(64),
        np.linspace(0, 200, 64)[None, :, None, None] + np.linspace(0, 55, 64)[None, None, :, None],
    )
    for image in (smooth + np.random.default_rng(0).normal(0, 6, (40, 64, 64, 3))).clip(0, 255).astype(np.uint8):
        tiles.add(image)
    whole = sum(map(len, tiles.sheets().files))
    sheets = tiles.sheets(whole / 2.5)
    assert sheets.kind == "jpeg"
    assert sum(map(len, sheets.files)) <= whole / 2.5
    error = decoded(sheets.files)[0].astype(float) - drawn_sheet(tiles.images)
    assert np.sqrt(np.mean(error[:128] ** 2)) < 8
    assert tiles.sheets(1.0).quality == QUALITIES[-1]  # nothing fits: the smallest there is


def test_neighbours_on_a_jpeg_sheet_do_not_mix() -> None:
    black, white = (np.full((28, 28, 3), level, np.uint8) for level in (0, 255))
    tiles = Tiles(28)
    numbers = [tiles.add(image) for image in (black, white)]
    (drawn,) = decoded(tiles.sheets(1.0).files)
    for number, image in zip(numbers, (black, white), strict=True):
        np.testing.assert_allclose(tile_on([drawn], number, 28), image, atol=1)


def test_images_shrink_only_where_there_are_too_many() -> None:
    assert side_for(2000, 64) == 64
    assert side_for(900 * 10, 512) < 64
    assert side_for(100 * 10, 512) >= 128
    assert side_for(most_tiles(), 512) == side_for(10**7, 512) == 48


# ---- browser


def test_every_image_stands_in_its_place_with_its_scores(table: Table) -> None:
    shown = browser(table, sources_of(table))
    index, drawn = shown.index, decoded(shown.sheets.files)
    assert index["images"] == [7, 6, 5, 4, 3, 2, 1, 0]  # by rank
    stimuli = Stimuli(stimuli_path(table.rows[0].entry.cfg)).images(np.array(index["images"]))
    for k, image_id in enumerate(index["images"]):
        np.testing.assert_array_equal(tile_on(drawn, index["stimuli"][k], SIDE), stimuli[k])
        for number, row in enumerate(index["rows"]):
            np.testing.assert_array_equal(tile_on(drawn, row["tiles"][k], SIDE), images_for(number)[image_id, 0])
            assert row["scores"]["pixcorr"][k] == pytest.approx(image_id / 10)
    assert index["rows"][0]["scores"]["two_way_low"][-1] is None
    assert index["rows"][0]["run"] == table.rows[0].folder.run_id
    assert [(m["key"], m["lower"], m["percent"]) for m in index["metrics"]] == [
        ("pixcorr", False, False), ("two_way_low", False, True),
    ]  # fmt: skip
    assert shown.note == "All 8 images of every row, first repeat, 6 pixels wide, without loss."


def test_names_cannot_leave_the_data_of_the_page(table: Table, tmp_path: Path) -> None:
    text = write_report(table, tmp_path / "results", "nd run")[0].read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="image-index">(.*?)</script>', text, re.DOTALL)
    assert json.loads(found[1]) == browser(table, sources_of(table)).index
    sheets = re.findall(r'<script type="text/plain" class="sheet" [^>]*>(.*?)</script>', text)
    assert [base64.b64decode(sheet) for sheet in sheets] == browser(table, sources_of(table)).sheets.files
    assert "<b>" not in text


def test_too_many_images_are_thinned_by_rank_and_it_is_said(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.tables.image_browser.most_tiles", lambda: 9)
    shown = browser(table, sources_of(table))
    assert shown.index["images"] == [7, 3, 0]
    assert shown.index["rows"][1]["scores"]["pixcorr"] == [0.7, 0.3, 0.0]
    assert shown.note.startswith("3 of 8 images, evenly from the best to the worst, of every row")


def test_images_that_are_not_those_that_were_scored_are_left_out(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    path = table.rows[0].folder.path / "manifest.json"
    write_json(path, read_json(path) | {"inputs": {"images": "of another run"}})
    RunFolder.open(table.rows[1].entry.cfg, "reconstruct").path.joinpath("status").unlink()
    with pytest.raises(UserError, match=r"is not the run that was scored\. Remove .+ and run `nd evaluate` again"):
        gallery(table)
    assert sources_of(table) == []
    assert "is not the run that was scored" in caplog.text
    assert "floor (subj01): its images are not shown: the reconstruct run" in caplog.text
    assert browser(table, []) is None


def test_an_image_as_large_as_all_are_shown_smaller(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.tables.image_browser.side_for", lambda n, side: 4)
    shown = browser(table, sources_of(table))
    wanted = Image.fromarray(images_for(1)[7, 0]).resize((4, 4), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(tile_on(decoded(shown.sheets.files), shown.index["rows"][1]["tiles"][0], 4), wanted)
    assert "4 pixels wide (made 6 wide)" in shown.note


# ---- strips, steps, ROIs


def test_strips_hold_all_repeats_in_order(table: Table) -> None:
    strips = image_strips(table, sources_of(table))
    assert [one.image_id for one in strips] == [7, 5, 2, 0]
    (strip,) = strips[0].strips  # of the row that the spec names
    assert (strip.label, strip.repeats, strip.consistency) == ("a </script><b>", REPEATS, None)
    got = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.uri.partition(",")[2]))).convert("RGB")).astype(float)
    wanted = np.concatenate(list(images_for(0)[7]), axis=1)
    assert got.shape == wanted.shape
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.9  # JPEG of noise
    assert image_strips(replace(table, spec=replace(table.spec, images=["floor"])), []) == []


def record(cfg: Config, folder: Path) -> None:
    """Say in the manifest of a run that it wrote previews."""
    path = RunFolder.open(cfg, "reconstruct").path / "manifest.json"
    manifest = read_json(path)
    manifest["config"]["trainer"]["previews"] = str(folder)
    write_json(path, manifest)


def test_recorded_steps_and_losses_are_shown(table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ways_of(table) == []
    folder = tmp_path / "previews"
    folder.mkdir()
    for step in (0, 10, 20):
        Image.new("RGB", (4, 4), (step, 0, 0)).save(folder / f"image-00003-step-{step:03d}.png")
    rows = [(3, 0, k, 1 / (k + 1)) for k in range(3)] + [(4, 0, 0, 0.5)]
    (folder / "losses.csv").write_text(
        "image_id,repeat,iteration,loss\n" + "".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8"
    )
    record(table.rows[0].entry.cfg, folder)
    (way,) = ways_of(table)
    assert (way.image_id, [step for step, _ in way.steps]) == (3, [0, 10, 20])
    assert (
        way.steps[1][1].partition(",")[2]
        == base64.b64encode((folder / "image-00003-step-010.png").read_bytes()).decode()
    )
    assert [(line.name, list(line.points)) for line in way.losses.lines] == [
        ("image 3", [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]), ("image 4", [(0, 0.5)]),
    ]  # fmt: skip
    assert "How images came about" in write_report(table, tmp_path / "r", "nd run")[0].read_text(encoding="utf-8")
    record(table.rows[1].entry.cfg, folder)  # who wrote it cannot be told
    assert ways_of(table) == []
    assert "holds previews of" in caplog.text
    (folder / "losses.csv").write_text("image_id,loss\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"losses\.csv holds no losses"):
        read_losses(folder / "losses.csv")


def test_images_of_rois_are_those_of_the_rows_settings(table: Table, tmp_path: Path) -> None:
    cfg = table.rows[0].entry.cfg
    assert written_for(cfg) == []
    images = np.random.default_rng(0).integers(0, 256, (2, 1, SIDE, SIDE, 3)).astype(np.uint8)
    shown = RoiImages(["V1", "V2"], [5, 6], images, {"z": np.array([1.0, 4.0], np.float32)})
    write_page(shown, page_path(cfg, shown.names), cfg, "nd roi")
    other = page_path(cfg, ["V3"])  # the file of another call, under a name that is not its own
    other.with_suffix(".h5").write_bytes(page_path(cfg, shown.names).with_suffix(".h5").read_bytes())
    (found,) = written_for(cfg)
    assert (found.names, found.n_voxels) == (shown.names, [5, 6])
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.lengths["z"], [1.0, 4.0])
    text = write_report(table, tmp_path / "r", "nd run")[0].read_text(encoding="utf-8")
    assert 'alt="V2, repeat 1"' in text
    assert "z 0.25" in text


# ---- costs


def test_costs_are_those_that_the_manifests_say(table: Table) -> None:
    for row, seconds in zip(table.rows, (24.0, 48.0), strict=True):
        for verb, share in (("reconstruct", 1.0), ("evaluate", 0.5)):
            path = RunFolder.open(row.entry.cfg, verb).path / "manifest.json"
            manifest = read_json(path)
            manifest |= {"seconds": share * seconds, "peak_memory_mb": {"resident": 100 * seconds}}
            if (row.row.role, verb) == ("method", "reconstruct"):
                plan = {"guided": 20, "plain": 40, "decode": 10, "checkpoint": False}
                manifest["execution"] = {"plan": plan, "tflop_per_image": 0.25}
            write_json(path, manifest)
    costs = costs_of(table)
    recorded = ["tflop per image"]  # whatever number a run says of its execution
    assert costs.columns == ["reconstruct", "evaluate", PER_IMAGE, AT_ONCE, RESIDENT, *recorded]
    assert [[amount.value for amount in row.amounts] for row in costs.rows] == [
        [24.0, 12.0, 1.0, 20, 2400.0, 0.25], [48.0, 24.0, 2.0, None, 4800.0, None],
    ]  # fmt: skip
    assert [amount.text for amount in costs.rows[0].amounts] == [
        "24.0 s",
        "12.0 s",
        "1",
        "20, 40, 10",
        "2.4 GB",
        "0.25",
    ]
    assert costs.note.startswith("All 4 runs together took 1 min 48 s; ")


def test_a_page_is_whole_without_images(table: Table) -> None:
    from nd.tables.gallery import gallery

    text = page(table, gallery(table), "nd run")
    assert "image-index" not in text
    assert 'id="score-table"' in text


def test_sheets_say_their_kind() -> None:
    assert [Sheets([b"x"], 28, quality).kind for quality in (0, 90)] == ["png", "jpeg"]
    assert Sheets([b"x"], 28, 0).texts == ["eA=="]
