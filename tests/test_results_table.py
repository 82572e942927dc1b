"""Tables: specs that are checked, rows that may stand together, numbers that are what the runs say."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_files import left_so
from helpers_results import N_IMAGES, config, fake_scores

from nd.config import Config
from nd.config.application import compose, derive
from nd.errors import UserError
from nd.metrics.repeats import AGGREGATIONS
from nd.tables import formats
from nd.tables.csv_export import csv_files
from nd.tables.specs import Column, Entry, Pair, Row, TableSpec, expand, load_spec
from nd.tables.table import REPEATS, Table, collect, unexpected

Change = Callable[[Config], None]
RNG = np.random.default_rng(1)
GUIDED = {"pixcorr": RNG.uniform(0.5, 0.6, N_IMAGES), "two_way_low": RNG.uniform(0.8, 0.9, N_IMAGES)}
UNGUIDED = {"pixcorr": RNG.uniform(0.3, 0.4, N_IMAGES), "two_way_low": RNG.uniform(0.8, 0.9, N_IMAGES)}
SPEC = TableSpec(
    name="tiny", folder=Path(), title="A & B", experiment="scenes", subjects=["subj01"],
    columns=[Column(metric="pixcorr", name="PixCorr"), Column(metric="two_way_low", name="low", percent=True)],
    rows=[Row(label="guided"), Row(label="unguided", overrides=["guidance=none"], note="a_b | c")],
    paired=[Pair(a="guided", b="unguided", metrics=["pixcorr"])],
)  # fmt: skip


def entry(root: Path, row: Row, **values: object) -> Entry:
    cfg = config(root)
    for name, value in values.items():
        group, _, field = name.partition("__")
        setattr(getattr(cfg, group), field, value) if field else setattr(cfg, group, value)
    cfg.overrides = [*row.overrides]
    return Entry(row, cfg.subject.name, cfg)


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """A guided and an unguided row; none has been run."""
    guided, unguided = SPEC.rows
    return [entry(tmp_path, guided), entry(tmp_path, unguided, guidance__kappa=0.0)]


@pytest.fixture
def table(entries: list[Entry]) -> Table:
    fake_scores(entries[0].cfg, GUIDED)
    fake_scores(entries[1].cfg, UNGUIDED)
    return collect(SPEC, entries, "nd run table=tiny")


def write_spec(folder: Path, **changes: object) -> str:
    spec = {
        "title": "T", "experiment": "scenes", "subjects": ["subj01"],
        "columns": [{"metric": "pixcorr"}], "rows": [{"label": "a"}],
    }  # fmt: skip
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(spec | changes), encoding="utf-8")
    return str(path)


def test_rows_that_follow_released_code_say_where_it_departs(entries: list[Entry]) -> None:
    method = entries[0].cfg.method
    method.name, method.variant = "neuraldiffuser_released", "released"
    for one, scores in zip(entries, (GUIDED, UNGUIDED), strict=True):
        fake_scores(one.cfg, scores)
    notes = collect(SPEC, entries, "nd run table=tiny").notes
    said = "follows released code; conf/method/neuraldiffuser_released.yaml says what is done instead of what that does"
    assert [note for note in notes if "released" in note] == [f"guided: {said}"]


def test_a_subject_that_is_given_is_the_only_one() -> None:
    spec = replace(load_spec("scenes"), subjects=["subj01", "subj02"], rows=SPEC.rows[:1])
    entries = expand(spec, compose(["table=scenes", "subject=subj03"]), derive)
    assert [(e.subject, e.cfg.subject.name) for e in entries] == [("subj03", "subj03")]
    assert [e.cfg.subject.name for e in expand(spec, compose(["table=scenes"]), derive)] == ["subj01", "subj02"]


def test_a_spec_of_your_own_is_given_by_its_path(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, expected={"a": {"pixcorr": 0.5}}))
    assert (spec.name, spec.folder, spec.rows[0].role, spec.tolerance) == ("own", tmp_path, "method", 0.01)


def test_a_table_can_extend_another(tmp_path: Path) -> None:
    pairs = [{"a": "a", "b": "b", "metrics": ["pixcorr"]}]
    first = write_spec(
        tmp_path, rows=[{"label": "a"}, {"label": "b"}], paired=pairs, tolerance=0.5, expected={"a": {"pixcorr": 0.1}}
    )
    Path(first).rename(tmp_path / "first.yaml")
    second = {
        "extends": str(tmp_path / "first.yaml"), "title": "Second", "rows": [{"label": "c"}],
        "paired": [{"a": "c", "b": "a", "metrics": ["pixcorr"]}], "expected": {"c": {"pixcorr": 0.2}},
    }  # fmt: skip
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second), encoding="utf-8")
    spec = load_spec(str(tmp_path / "second.yaml"))
    assert (spec.name, spec.title, spec.experiment, spec.tolerance) == ("second", "Second", "scenes", 0.5)
    assert [row.label for row in spec.rows] == ["c", "a", "b"]
    assert [(pair.a, pair.b) for pair in spec.paired] == [("c", "a"), ("a", "b")]
    assert spec.expected == {"a": {"pixcorr": 0.1}, "c": {"pixcorr": 0.2}}


def test_a_table_that_extends_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extends leads back to own\.yaml"):
        load_spec(write_spec(tmp_path, extends=str(tmp_path / "own.yaml")))
    with pytest.raises(UserError, match="unknown table 'scense'"):
        load_spec(write_spec(tmp_path, extends="scense"))


def test_a_tuning_curve_is_looked_for_beside_the_table_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\ntitle: Mine\n", encoding="utf-8")
    spec, demo = load_spec(str(tmp_path / "mine.yaml")), load_spec("demo")
    assert spec.folder == tmp_path
    assert (spec.folder / spec.curve).samefile(demo.folder / demo.curve)


@pytest.mark.parametrize("twice", ["title: U\n", "expected:\n  a: {pixcorr: 1.0}\n  a: {pixcorr: 2.0}\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, twice: str) -> None:
    path = write_spec(tmp_path)
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + twice, encoding="utf-8")
    with pytest.raises(UserError, match=r"own\.yaml cannot be read as a table spec: '(title|a)' stands here twice"):
        load_spec(path)


def test_an_unknown_table_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"unknown table 'scene'\. Did you mean 'scenes'\? Allowed: ablation_components, "
    ):
        load_spec("scene")
    with pytest.raises(UserError, match=r"no table was named\. Give table=<name>, one of: ablation_components, "):
        load_spec("")


def test_all_problems_of_a_spec_are_told_at_once(tmp_path: Path) -> None:
    rows = [{"label": "a", "overides": []}, {"label": "b"}]
    with pytest.raises(UserError) as caught:
        load_spec(write_spec(tmp_path, rows=rows, colums=[], published=[{"label": "p"}]))
    message = str(caught.value)
    assert "rows[0] has no field 'overides'. Did you mean 'overrides'?" in message
    assert "own.yaml has no field 'colums'. Did you mean 'columns'?" in message
    assert "published[0] lacks 'source'" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"label": "a"}, {"label": "a"}]}, "two rows are called 'a'"),
        ({"rows": [{"label": "a", "role": "orcale"}]}, r"role of row 'a': 'orcale'\. Did you mean 'oracle'\?"),
        ({"paired": [{"a": "a", "b": "z", "metrics": ["pixcorr"]}]}, "paired names no row: unknown row 'z'"),
        ({"paired": [{"a": "a", "b": "a", "metrics": ["ssim"]}]}, "paired names no column: unknown column 'ssim'"),
        ({"expected": {"a": {"ssim": 1.0}}}, "expected names no column"),
        ({"images": ["zz"]}, "images names no row"),
        ({"rows": ["a"]}, r"rows\[0\] is str, wanted a mapping"),
        ({"rows": []}, "rows must list at least one"),
        ({"subjects": []}, "subjects must list at least one where an experiment is named"),
        ({"subjects": ["subj01", "subj01"]}, "subjects lists 'subj01' twice"),
        ({"name": "mine"}, r"own\.yaml has no field 'name'"),
        ({"extends": ["demo"]}, r"own\.yaml: extends is \['demo'\], wanted the name of one table"),
        ({"extends": 3}, r"extends is 3, wanted the name of one table"),
        ({"tolerance": "abc"}, "tolerance is 'abc', wanted a number"),
        ({"tolerance": None}, "tolerance is None, wanted a number"),
        ({"tolerance": float("nan")}, "tolerance is nan, wanted a number"),
        ({"tolerance": True}, "tolerance is True, wanted a number"),
        ({"tolerance": -0.1}, r"tolerance is -0\.1, wanted 0 or more"),
        ({"expected": {"a": {"pixcorr": "x"}}}, "expected is 'x', wanted a number"),
        ({"columns": [{"metric": "pixcorr", "decimals": "two"}]}, r"columns\[0\]: decimals is 'two', wanted a whole"),
        ({"columns": [{"metric": "pixcorr", "decimals": -1}]}, "column 'pixcorr': decimals is -1, wanted 0 to 17"),
        ({"columns": [{"metric": "pixcorr", "percent": "no"}]}, r"columns\[0\]: percent is 'no', wanted true or false"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec(write_spec(tmp_path, **changes))


def test_rows_that_are_missing_come_with_their_commands(entries: list[Entry]) -> None:
    fake_scores(entries[0].cfg, GUIDED)
    with pytest.raises(UserError) as caught:
        collect(SPEC, entries, "nd run table=tiny")
    assert "1 of 2 rows of table tiny have not been run" in str(caught.value)
    assert "  nd run table=tiny\n" in str(caught.value)
    assert "- unguided (subj01): nd run guidance=none table=" in str(caught.value)
    assert "- guided" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"protocol": {"name": "scenes", "version": 2}}, r"(?s)guided.*protocol scenes v1.*unguided.*scenes v2"),
        ({"test_set": "bad"}, r"(?s)set f00.*set bad"),
        (
            {"protocol": {"name": "scenes-changed-ab12", "version": 1}},
            r"(?s)- guided.*scenes v1.*- unguided.*-changed-ab12",
        ),
        ({"protocol": {"name": "nd", "version": 1}}, r"(?s)- guided \(subj01\): .*scenes v1.*- unguided.*nd v1"),
        ({"n_images": 7}, r"(?s)- guided \(subj01\).*8 images.*- unguided \(subj01\).*7 images"),
        ({"aggregation": "best"}, r"(?s)- guided \(subj01\).*- unguided \(subj01\).*set f00, best"),
        ({"simulated": False}, "mixes rows from measured and from simulated"),
        ({"oracle": True}, r"row 'unguided' has role 'method', but its run is an oracle run"),
        ({"control": "shuffled_voxels"}, r"row 'unguided' has role 'method', but its run is a control run"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(entries: list[Entry], facts: dict[str, object], message: str) -> None:
    fake_scores(entries[0].cfg, GUIDED)
    fake_scores(entries[1].cfg, UNGUIDED, **facts)
    with pytest.raises(UserError, match=message):
        collect(SPEC, entries, "nd run")


def test_one_name_for_two_sizes_is_refused(entries: list[Entry]) -> None:
    for one, size, digest in zip(entries, (224, 342), ("aa11", "bb22"), strict=True):
        settings = {"network_size": size, "image_size": 64}
        fake_scores(one.cfg, GUIDED, protocol={"name": "nd", "version": 1, "hash": digest, "settings": settings})
    with pytest.raises(UserError) as caught:
        collect(SPEC, entries, "nd run")
    assert "guided (subj01): protocol nd v1 (settings aa11)" in str(caught.value)
    assert "unguided (subj01): protocol nd v1 (settings bb22)" in str(caught.value)
    assert "guided and unguided differ in network_size 224 against 342\n" in str(caught.value)


def test_a_role_cannot_be_claimed(tmp_path: Path) -> None:
    row = Row(label="x", role="oracle")
    fake_scores(entry(tmp_path, row).cfg, GUIDED)
    with pytest.raises(UserError, match="has role 'oracle', but its run is not an oracle run"):
        collect(replace(SPEC, rows=[row], paired=[]), [entry(tmp_path, row)], "nd run")


def test_a_column_nobody_has_is_refused(entries: list[Entry]) -> None:
    for one in entries:
        fake_scores(one.cfg, GUIDED)
    spec = replace(SPEC, columns=[*SPEC.columns, Column(metric="lpips")])
    with pytest.raises(UserError, match=r"no row of table tiny has the scores lpips\. Scores there are: pixcorr, two"):
        collect(spec, entries, "nd run")


def test_paired_differences_are_over_the_same_images(table: Table, entries: list[Entry]) -> None:
    (difference,) = table.differences
    wanted = GUIDED["pixcorr"] - UNGUIDED["pixcorr"]
    assert difference.mean == pytest.approx(wanted.mean())
    assert wanted.min() < difference.lo < difference.mean < difference.hi < wanted.max()
    assert difference.n == N_IMAGES
    assert difference.p == difference.p_holm == 2 / 2**N_IMAGES  # all differences have one sign
    assert difference.rank_biserial == 1.0
    path = table.rows[1].run.path / "per_image.csv"  # the order of lines must not matter
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *lines[::-1]]), encoding="utf-8")
    left_so(path.parent)
    assert collect(SPEC, entries, "nd run").differences == table.differences


def test_p_values_are_corrected_for_all_comparisons_of_a_table(entries: list[Entry]) -> None:
    fake_scores(entries[0].cfg, GUIDED)
    fake_scores(entries[1].cfg, UNGUIDED)
    spec = replace(SPEC, paired=[replace(SPEC.paired[0], metrics=["pixcorr", "two_way_low"])])
    first, second = collect(spec, entries, "nd run").differences
    assert first.p_holm == 2 * first.p
    assert second.p_holm == second.p
    assert f"p {first.p:.4f}, corrected 0.016; d_z {first.d_z:.2f}, rank-biserial 1.00" in formats.text(
        collect(spec, entries, "nd run")
    )


def test_rows_of_other_images_are_not_paired(table: Table, entries: list[Entry]) -> None:
    path = table.rows[1].run.path / "per_image.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("\n7,", "\n77,"), encoding="utf-8")
    left_so(path.parent)
    with pytest.raises(
        UserError, match=r"paired rows 'guided' and 'unguided' \(subj01\) hold scores of different images"
    ):
        collect(SPEC, entries, "nd run")


def test_few_images_are_said_to_show_little(table: Table) -> None:
    spread = (GUIDED["pixcorr"] - UNGUIDED["pixcorr"]).std(ddof=1)
    found = 2.8016 * spread / np.sqrt(N_IMAGES)
    assert f"With {N_IMAGES} images" in table.caption
    assert f"80% power at the 5% level (uncorrected) is: PixCorr {found:.3f} (guided minus unguided)." in table.caption
    many = [replace(difference, n=100) for difference in table.differences]
    assert "power" not in replace(table, differences=many).caption
    assert "power" not in replace(table, differences=[]).caption


@pytest.mark.parametrize(
    ("aggregation", "said"),
    [
        ("each", "; scores of repeats are averaged within an image."),
        ("first", "; of the repeats of an image the first is scored."),
        ("best", "each metric takes the best, chosen by the true image: a ceiling."),
        ("pixel_mean", "; the repeats of an image are averaged before it is scored."),
    ],
)
def test_a_caption_says_what_is_made_of_repeats(entries: list[Entry], aggregation: str, said: str) -> None:
    assert set(REPEATS) == set(AGGREGATIONS)
    protocol = {"name": "scenes", "version": 1, "settings": {"aggregation": aggregation}}
    for one in entries:
        fake_scores(one.cfg, GUIDED, protocol=protocol)
    table = collect(replace(SPEC, paired=[]), entries, "nd run")
    assert said in table.caption
    assert ("averaged within an image" in table.caption) == (aggregation == "each")


def test_text_shows_scores_intervals_chance_and_kind(table: Table) -> None:
    shown = formats.text(table)
    guided = GUIDED["pixcorr"].mean()
    assert f"{guided:.3f} ±0.015" in shown
    assert "A & B - simulated fMRI" in shown
    assert f"protocol scenes v1; {N_IMAGES} test images (set f00)" in shown
    assert "PixCorr ↑" in shown
    chance = next(line for line in shown.splitlines() if line.strip().startswith("chance"))
    assert chance.split() == ["chance", "-", "50.0%"]
    assert "guided minus unguided: PixCorr" in shown
    assert len({len(line) for line in shown.splitlines()[3:8]}) == 1


def test_roles_are_marked(tmp_path: Path) -> None:
    rows = [Row(label="true", role="oracle"), Row(label="mean", role="floor")]
    entries = [entry(tmp_path, rows[0], features="oracle"), entry(tmp_path, rows[1], method__generator="mean_image")]
    for one in entries:
        fake_scores(one.cfg, GUIDED)
    made = collect(replace(SPEC, rows=rows, paired=[]), entries, "nd run")
    for shape in (formats.text, formats.markdown, formats.latex):
        assert "true (oracle)" in shape(made)
        assert "mean (floor)" in shape(made)
        assert "a ceiling, not decoding" in shape(made)


def test_several_subjects_are_rows_of_their_own(tmp_path: Path) -> None:
    entries = [entry(tmp_path, SPEC.rows[0], subject__name=name) for name in ("subj01", "subj02")]
    for one in entries:
        fake_scores(one.cfg, GUIDED)
    made = collect(replace(SPEC, rows=SPEC.rows[:1], paired=[]), entries, "nd run")
    assert [row.subject for row in made.rows] == ["subj01", "subj02"]
    assert re.search(r"\| guided +\| +subj02 \| +8x2 \|", formats.markdown(made))


def test_markdown_is_a_table(table: Table) -> None:
    lines = [line for line in formats.markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "a_b | c" in formats.markdown(table)


def test_csv_keeps_every_digit_and_what_rows_are_comparable_by(table: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_files(table)[".csv"])))
    assert len(lines) == 4
    assert float(lines[0]["mean"]) == GUIDED["pixcorr"].mean()
    assert (lines[0]["protocol"], lines[0]["test_set"], lines[0]["simulated"]) == ("scenes v1", "f00", "True")
    assert lines[2]["run"] == table.rows[1].folder.run_id


def test_latex_escapes_what_latex_reads(table: Table) -> None:
    made = formats.latex(table)
    assert r"A \& B" in made
    assert r"a\_b" in made
    assert r"PixCorr $\uparrow$" in made
    assert made.count(r"\\") == 4
    assert "50.0\\%" in made


def test_expected_scores_are_compared_within_the_tolerance(table: Table, entries: list[Entry]) -> None:
    mean = GUIDED["pixcorr"].mean()
    near = replace(SPEC, expected={"guided": {"pixcorr": mean + 0.009}})
    far = replace(SPEC, expected={"guided": {"pixcorr": mean + 0.02, "two_way_low": float("nan")}})
    assert unexpected(collect(near, entries, "nd run")) == []
    lines = unexpected(collect(far, entries, "nd run"))
    assert len(lines) == 2
    assert lines[0] == f"guided, pixcorr: {mean:.4f}, expected {mean + 0.02:.4f} within 0.01"
    with pytest.raises(UserError, match="no expected values"):
        unexpected(table)


def test_files_are_written_in_three_shapes(table: Table, tmp_path: Path) -> None:
    paths = formats.write_table(table, tmp_path / "results")
    assert [path.name for path in paths] == ["tiny.md", "tiny.csv", "tiny.tex", "tiny-paired.csv"]
    assert all(path.stat().st_size for path in paths)


def test_expected_scores_are_those_of_the_first_subject_alone(tmp_path: Path) -> None:
    given = entry(tmp_path, SPEC.rows[0], subject__name="subj02")
    fake_scores(given.cfg, GUIDED)
    expected = {"guided": {"pixcorr": GUIDED["pixcorr"].mean()}}
    spec = replace(SPEC, rows=SPEC.rows[:1], paired=[], expected=expected)
    with pytest.raises(UserError, match=r"expected values are those of subj01, .* table of subj02\. Leave check=true"):
        unexpected(collect(spec, [given], "nd run"))
    composed = replace(spec, experiment="", subjects=[])
    assert unexpected(collect(composed, [given], "nd run")) == []
