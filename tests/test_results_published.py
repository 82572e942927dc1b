"""Published scores as data, and means over subjects and seeds: what may be averaged, what may share a column."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_files import left_so
from helpers_results import N_IMAGES, config, fake_scores

from nd.errors import UserError
from nd.metrics.intervals import pooled_interval
from nd.tables import formats
from nd.tables.blocks import blocks
from nd.tables.csv_export import csv_files
from nd.tables.gallery import Gallery
from nd.tables.published import BOUNDS, FOLDER, Published, find_published, load_set, sets
from nd.tables.report import page
from nd.tables.specs import Averaged, Column, Entry, Row, TableSpec, load_spec
from nd.tables.statistics import MeanRow, check_seeds
from nd.tables.table import Table, collect

SPEC = TableSpec(
    name="tiny", folder=Path(), title="T", experiment="scenes", subjects=["subj01"],
    columns=[Column(metric="pixcorr", name="PixCorr"), Column(metric="clip", name="CLIP", percent=True)],
    rows=[Row(label="a"), Row(label="b", overrides=["seed=43"])],
)  # fmt: skip
NO_IMAGES = Gallery([], [], [], [], [], "")
PIXCORR = np.random.default_rng(0).uniform(0.2, 0.6, (2, 2, N_IMAGES))  # subject, row, image


def entries(root: Path, subjects: tuple[str, ...] = ("subj01",), **changes: object) -> list[Entry]:
    """Rows a and b (another seed, and whatever ``changes`` say), finished."""
    made = []
    for k, subject in enumerate(subjects):
        for row in SPEC.rows:
            cfg = config(root)
            cfg.subject.name = subject
            if row.label == "b":
                cfg.seed = 43
                for name, value in changes.items():
                    group, _, field = name.partition("__")
                    setattr(getattr(cfg, group), field, value) if field else setattr(cfg, group, value)
            scores = PIXCORR[k, SPEC.rows.index(row)]
            fake_scores(cfg, {"pixcorr": scores, "clip": 1 - scores})
            made.append(Entry(row, subject, cfg))
    return made


# ---- the data


def test_every_shipped_row_is_sound_and_says_where_it_was_seen() -> None:
    assert sets() == ["basic_h", "minddiffuser", "mindeye_subj01", "nsd1000", "nsd982", "prism"]
    rows = {name: find_published(name) for name in sets()}
    assert {name: len(found) for name, found in rows.items()} == {
        "basic_h": 13, "minddiffuser": 5, "mindeye_subj01": 2, "nsd1000": 13, "nsd982": 12, "prism": 5,
    }  # fmt: skip
    for row in (row for found in rows.values() for row in found):
        assert row.problems() == []
        assert row.source
        assert row.version is None, "printed values belong to no protocol of this package"


def test_values_are_those_printed() -> None:
    (row,) = find_published("nsd982/brain_diffuser")
    assert list(row.scores.values()) == [0.254, 0.356, 0.942, 0.962, 0.872, 0.915, 0.775, 0.423]
    assert (row.n_images, row.subjects, row.basis) == (982, ["subj01", "subj02", "subj05", "subj07"], "code")
    (own,) = find_published("mindeye_subj01/mindeye2")
    assert list(own.scores.values()) == [
        *(0.374, 0.439, 0.9791, 0.9911, 0.96, 0.9369, 0.607, 0.336),
        *(0.9987, 0.9996),  # retrieval of images ("bwd" there) and of brain activity ("fwd")
    ]
    assert (own.seen, own.subjects) == ("output", ["subj01"])
    (prism,) = find_published("prism/neuraldiffuser")
    assert prism.scores["alexnet2"] is None
    assert find_published("nsd982/takagi")[0].scores["pixcorr"] is None


def write_set(folder: Path, **changes: object) -> Path:
    given = yaml.safe_load((FOLDER / "nsd982.yaml").read_text(encoding="utf-8"))
    given["rows"] = [given["rows"][3] | changes.pop("row", {})]
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(given | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": {"values": [0.1]}}, r"row 'brain_diffuser' has 1 values for 8 metrics; a score not seen is null"),
        ({"row": {"values": 0.1}}, "values is float, wanted a list"),
        ({"row": {"values": [None] * 8}}, "has no score"),
        (
            {"row": {"values": [0.1, 0.3, 94.2, *[None] * 5]}},
            r"alexnet2 is 94\.2, wanted 0 to 1 \(shares, not per cent\)",
        ),
        ({"row": {"values": ["x", *[None] * 7]}}, "pixcorr is 'x', wanted a number or null"),
        ({"row": {"seen": "papr"}}, r"unknown seen 'papr'\. Did you mean 'paper'"),
        ({"row": {"basis": "guess"}}, "unknown basis 'guess'"),
        ({"row": {"source": ["zebr"]}}, r"names no source: unknown source 'zebr'\. Did you mean 'zebra'"),
        ({"row": {"source": []}}, "names no source"),
        ({"row": {"sourc": []}}, r"rows\[0\] has no field 'sourc'\. Did you mean 'source'"),
        ({"n_images": "982"}, "n_images is '982', wanted a whole number or null"),
        ({"metrics": None}, "metrics is NoneType, wanted a list"),
        ({"titel": "x"}, "own.yaml has no field 'titel'"),
    ],
)
def test_data_that_cannot_be_right_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_set(write_set(tmp_path, **changes))


def test_a_row_is_there_once(tmp_path: Path) -> None:
    path = write_set(tmp_path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(given | {"rows": given["rows"] * 2}), encoding="utf-8")
    with pytest.raises(UserError, match="row 'brain_diffuser' is there twice"):
        load_set(path)
    with pytest.raises(UserError, match="cannot be read as published scores"):
        load_set(tmp_path / "none.yaml")


def test_names_that_are_not_there_come_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown set of published scores 'nsd98'\. Did you mean 'nsd982'"):
        find_published("nsd98")
    with pytest.raises(UserError, match=r"nsd982: 'dreem'\. Did you mean 'dream'"):
        find_published("nsd982/dreem")
    spec = {"title": "T", "experiment": "scenes", "subjects": ["subj01"], "columns": [{"metric": "x"}]}
    spec |= {"rows": [{"label": "a"}], "published": ["nsd982/dream", "prism"]}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert [row.label for row in load_spec(str(path)).published][:2] == ["DREAM", "Takagi & Nishimoto"]
    path.write_text(yaml.safe_dump(spec | {"published": ["nsd982/dreem"]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"published\[0\]: unknown row of published scores nsd982: 'dreem'"):
        load_spec(str(path))
    path.write_text(yaml.safe_dump(spec | {"published": "prism"}), encoding="utf-8")
    with pytest.raises(UserError, match="published is str, wanted a list"):
        load_spec(str(path))


# ---- beside the rows of a table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rows = [*find_published("nsd982/dream"), *find_published("nsd982/takagi"), *find_published("prism/prism")]
    return collect(replace(SPEC, published=rows), entries(tmp_path), "nd run")


def test_published_scores_have_blocks_of_their_own(table: Table) -> None:
    first, second = blocks(table)
    assert first.heading.startswith(
        "Published values of another protocol (as printed, NSD 37 sessions; 982 images; subj01,"
    )
    assert "not comparable with the rows above" in first.heading
    assert "number of images not known; subjects not known" in second.heading
    titles = ["alexnet2", "alexnet5", "inception", "CLIP", "effnet_b", "swav"]
    assert first.grid[0] == ["", "seen", "PixCorr", "ssim", *titles]
    assert first.grid[2] == [
        "Takagi & Nishimoto (published)",
        "quoted",
        "-",
        "-",
        "0.830",
        "0.830",
        "0.760",
        "77.0%",
        "-",
        "-",
    ]
    assert any(note == "quoted: quoted by others" for note in first.notes)
    assert any("inferred or unchecked: DREAM, Takagi" in note for note in first.notes)
    assert all("published" not in cell for line in formats.score_grid(table, Column.with_interval) for cell in line)
    for shape in (formats.text, formats.markdown, formats.latex):
        made = shape(table)
        assert "Published values of another protocol (as printed, NSD 37 sessions" in made
        assert made.count("DREAM (published)") == 1
        assert made.index("DREAM (published)") > made.index("b ")
    assert formats.latex(table).count(r"\begin{table}") == 3
    text = page(table, NO_IMAGES, "nd run")
    assert text.count('<th scope="row">DREAM (published)</th>') == 1
    assert text.index("DREAM") > text.index(f">{first.heading}</h2>")
    assert "DREAM" not in csv_files(table)[".csv"]
    lines = list(csv.DictReader(io.StringIO(csv_files(table)["-published.csv"])))
    assert len(lines) == 24
    assert (lines[8]["method"], lines[8]["metric"], lines[8]["value"]) == ("Takagi & Nishimoto", "pixcorr", "")


def test_printed_digits_are_kept(tmp_path: Path) -> None:
    spec = replace(SPEC, published=find_published("mindeye_subj01"))
    (block,) = blocks(collect(spec, entries(tmp_path), "nd run"))
    assert block.grid[2][-2:] == ["0.9987", "0.9996"]
    assert block.grid[1][-2:] == ["-", "-"]
    assert block.grid[1][3] == "0.3467"


def test_only_the_very_protocol_shares_a_column(tmp_path: Path) -> None:
    same = Published(
        label="X", protocol="scenes", version=1, n_images=N_IMAGES, source="S", scores={"pixcorr": 0.3}, seen="paper"
    )
    made = entries(tmp_path)
    for path in Path(made[0].cfg.paths.runs).rglob("scores.json"):
        path.write_text(
            path.read_text(encoding="utf-8").replace('"simulated": true', '"simulated": false'), encoding="utf-8"
        )
        left_so(path.parent)
    beside = collect(replace(SPEC, published=[same]), made, "nd run")
    assert re.search(r"\| X \(published\) +\| +8 \| +0.300 \| +- \|", formats.markdown(beside))
    shown = page(beside, NO_IMAGES, "nd run")
    assert '<th scope="row">X (published)</th><td>8</td><td>0.300</td><td>-</td>' in shown
    assert blocks(beside) == []
    others = {"version": 2}, {"version": None}, {"n_images": 7}, {"n_images": None}, {"protocol": "nd"}
    for change in others:
        apart = collect(replace(SPEC, published=[replace(same, **change)]), made, "nd run")
        assert (apart.published_beside, len(blocks(apart))) == ([], 1), change


def test_published_scores_never_stand_beside_simulated_ones(tmp_path: Path) -> None:
    same = Published(label="X", protocol="scenes", version=1, n_images=N_IMAGES, source="S", scores={"pixcorr": 0.3})
    assert collect(replace(SPEC, published=[same]), entries(tmp_path), "nd run").published_beside == []


def test_published_rows_are_never_paired(tmp_path: Path) -> None:
    spec = {"title": "T", "experiment": "scenes", "subjects": ["subj01"], "columns": [{"metric": "pixcorr"}]}
    spec |= {"rows": [{"label": "a"}], "published": ["nsd982/dream"]}
    spec["paired"] = [{"a": "a", "b": "DREAM", "metrics": ["pixcorr"]}]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    with pytest.raises(UserError, match="paired names no row: unknown row 'DREAM'"):
        load_spec(str(path))


def test_bounds_name_metrics_that_are_there() -> None:
    printed = {metric for name in sets() for row in find_published(name) for metric in row.scores}
    assert set(BOUNDS) <= printed


# ---- means over subjects and seeds


def test_several_subjects_have_a_block_of_means(tmp_path: Path) -> None:
    made = collect(SPEC, entries(tmp_path, ("subj01", "subj02")), "nd run")
    first, second = made.means
    wanted = pooled_interval([PIXCORR[0, 0], PIXCORR[1, 0]])
    assert (first.label, first.subjects, first.n_seeds) == ("a", ["subj01", "subj02"], 1)
    assert first.scores["pixcorr"].mean == pytest.approx(PIXCORR[:, 0].mean())
    assert (first.scores["pixcorr"].lo, first.scores["pixcorr"].hi) == pytest.approx((wanted.lo, wanted.hi))
    assert second.scores["clip"].mean == pytest.approx(1 - PIXCORR[:, 1].mean())
    (block,) = blocks(made)
    assert block.heading == "Mean over subjects (subj01, subj02)"
    assert "2 subjects and the images, which they share, are drawn" in block.notes[0].lower()
    assert f"{wanted.mean:.3f} [{wanted.lo:.3f}, {wanted.hi:.3f}]" in formats.markdown(made)
    lines = list(csv.DictReader(io.StringIO(csv_files(made)["-means.csv"])))
    assert (lines[0]["subjects"], lines[0]["n_images"]) == ("subj01 subj02", str(N_IMAGES))
    paths = formats.write_table(made, tmp_path / "results")
    assert [path.name for path in paths] == ["tiny.md", "tiny.csv", "tiny.tex", "tiny-means.csv"]


def test_one_subject_has_no_block_of_means(tmp_path: Path) -> None:
    assert collect(SPEC, entries(tmp_path), "nd run").means == []


def test_rows_of_other_seeds_are_averaged_within_an_image(tmp_path: Path) -> None:
    spec = replace(SPEC, averaged=[Averaged(label="both", rows=["a", "b"])])
    (row,) = collect(spec, entries(tmp_path), "nd run").means
    wanted = pooled_interval([PIXCORR[0].mean(0)])
    assert isinstance(row, MeanRow)
    assert (row.label, row.n_seeds, row.scores["pixcorr"]) == ("both", 2, wanted)
    two = collect(spec, entries(tmp_path / "two", ("subj01", "subj02")), "nd run")
    assert [mean.label for mean in two.means] == ["both"]
    assert two.means[0].scores["pixcorr"].mean == pytest.approx(PIXCORR.mean())
    assert "Mean over subjects (subj01, subj02)" in formats.text(two)


def test_rows_that_differ_in_more_than_their_seed_are_never_averaged(tmp_path: Path) -> None:
    spec = replace(SPEC, averaged=[Averaged(label="both", rows=["a", "b"])])
    with pytest.raises(UserError, match=r"rows 'a' and 'b' \(subj01\).*differ in method\.steps \(default against 7\)"):
        collect(spec, entries(tmp_path / "1", method__steps=7), "nd run")
    with pytest.raises(UserError, match="differ in nothing, not even their seed: they are one run"):
        check_seeds(spec.averaged[0], [Entry(row, "subj01", config(tmp_path)) for row in SPEC.rows])
    other = replace(SPEC.rows[1], role="reference")
    with pytest.raises(UserError, match=r"differ in role \(method against reference\)"):
        check_seeds(spec.averaged[0], [Entry(row, "subj01", config(tmp_path)) for row in (SPEC.rows[0], other)])


def test_a_mean_must_have_rows_and_a_name_of_its_own(tmp_path: Path) -> None:
    spec = {"title": "T", "experiment": "scenes", "subjects": ["subj01"], "columns": [{"metric": "pixcorr"}]}
    spec |= {"rows": [{"label": "a"}, {"label": "b"}]}
    path = tmp_path / "own.yaml"
    for averaged, message in (
        ({"label": "m", "rows": ["a"]}, "averaged 'm': at least two rows"),
        ({"label": "a", "rows": ["a", "b"]}, "a label of its own"),
        ({"label": "m", "rows": ["a", "z"]}, "averaged names no row: unknown row 'z'"),
    ):
        path.write_text(yaml.safe_dump(spec | {"averaged": [averaged]}), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_spec(str(path))
