"""Sanity checks: cheats are exposed, honest rows are not, and every number is one that the rows hold."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_files import left_so
from helpers_results import config, fake_scores
from numpy.typing import NDArray

from nd.data.prepared import open_subject
from nd.evaluation.brain_scores import voxel_ceiling
from nd.evaluation.scores import Score
from nd.metrics.diversity import diversity
from nd.prepare import prepare
from nd.tables.blocks import none_found
from nd.tables.csv_export import csv_files
from nd.tables.formats import latex, markdown, text
from nd.tables.sanity_checks import Finding, Judged, SanityChecks, best, better_by, has_room, judge, same_images
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import Table, collect

RNG = np.random.default_rng(5)
N, SIZE = 40, 64
COLUMNS = [Column(metric="pixcorr", name="PixCorr"), Column(metric="two_way_low", name="low", percent=True)]
Scores = dict[str, NDArray[np.float64]]


def correlation(a_NP: NDArray[np.float64], b_MP: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.corrcoef(a_NP, b_MP)[: len(a_NP), len(a_NP) :]


def scored(pictures_NP: NDArray[np.float64], shown_NP: NDArray[np.float64]) -> Scores:
    """PixCorr and two-way identification by pixels, by their plain formulas."""
    table = correlation(pictures_NP, shown_NP)
    own = np.diag(table)
    return {"pixcorr": own, "two_way_low": ((own[:, None] > table).sum(1) / (len(table) - 1)).astype(np.float64)}


@pytest.fixture(scope="module")
def rows() -> dict[str, Scores]:
    """Scores of images made honestly, by retrieval, with the test images, from shuffled voxels, and of floors."""
    rng = np.random.default_rng(11)
    common = rng.normal(size=SIZE)  # what all images share
    shown, training = (common + 1.5 * rng.normal(size=(n, SIZE)) for n in (N, 300))
    decoded = shown + 1.2 * rng.normal(size=shown.shape)  # what the voxels tell
    nearest = training[correlation(decoded - training.mean(0), training - training.mean(0)).argmax(1)]
    ceiling = shown + 0.3 * rng.normal(size=shown.shape)
    near = shown + 0.32 * rng.normal(size=shown.shape)
    leaked = shown + 0.1 * rng.normal(size=shown.shape)
    pictures = {
        "honest": decoded, "cheat": nearest, "nearest": nearest, "oracle": ceiling, "leak": leaked,
        "told": ceiling, "near": near, "shuffled": np.roll(decoded, 1, axis=0), "blind": np.roll(decoded, 1, axis=0),
        "mean": np.tile(training.mean(0), (N, 1)), "random": training[:N],
    }  # fmt: skip
    return {name: scored(made, shown) for name, made in pictures.items()}


ROLES = {"nearest": "floor", "mean": "floor", "random": "floor", "oracle": "oracle", "shuffled": "control"}


def judged(name: str, scores: Scores, **changes: Any) -> Judged:
    found = {}
    for metric, values in scores.items():
        half = 1.96 * values.std() / np.sqrt(len(values))
        chance = 0.5 if metric.startswith("two_way") else None
        better = "lower" if "distance" in metric else "higher"
        found[metric] = Score(values.mean(), values.mean() - half, values.mean() + half, chance, better)
    per_image = {"image_id": np.arange(len(values), dtype=float), **scores}
    facts = {"role": ROLES.get(name, "method"), "subject": "subj01"} | changes
    return Judged(name, facts["role"], facts["subject"], found, per_image)


def checked(rows: list[Judged], *metrics: str) -> SanityChecks:
    return SanityChecks(*judge(rows, metrics))


def checks(rows: dict[str, Scores], *methods: str) -> SanityChecks:
    return checked([judged(name, rows[name]) for name in (*methods, *ROLES)], "pixcorr", "two_way_low")


def said(checks: SanityChecks, label: str) -> list[str]:
    return [finding.text for finding in checks.findings if finding.label == label]


def test_an_honest_method_gives_no_finding(rows: dict[str, Scores]) -> None:
    found = checks(rows, "honest")
    assert found.findings == []
    standing = found.standings[0]
    floor = max(rows[name]["pixcorr"].mean() for name in ("nearest", "mean", "random"))
    score, oracle = rows["honest"]["pixcorr"].mean(), rows["oracle"]["pixcorr"].mean()
    assert (standing.floor, standing.score, standing.oracle) == pytest.approx((floor, score, oracle))
    assert standing.share == pytest.approx((score - floor) / (oracle - floor))
    assert 0.1 < standing.share < 0.9


def test_a_method_that_returns_training_images_is_exposed(rows: dict[str, Scores]) -> None:
    found = checks(rows, "cheat")
    assert (
        "has the very scores of nearest (floor) for 40 of 40 images: it shows what that floor shows"
        in said(found, "cheat")[0]
    )
    worse = [one for one in found.findings if one.text == "no better than nearest (floor)"]
    assert [one.metric for one in worse] == ["pixcorr", "two_way_low"]
    assert worse[0].difference is not None
    assert (worse[0].difference.mean, worse[0].difference.lo, worse[0].difference.hi) == (0, 0, 0)
    # Other training images than the floor's do not help it.
    swapped = rows | {"cheat": {name: values[::-1].copy() for name, values in rows["cheat"].items()}}
    texts = said(checks(swapped, "cheat"), "cheat")
    assert texts[:2] == ["no better than nearest (floor)"] * 2
    assert not any("very scores" in text for text in texts)


def test_a_method_that_uses_test_targets_is_exposed(rows: dict[str, Scores]) -> None:
    above = [f for f in checks(rows, "leak").findings if "test targets must have leaked" in f.text]
    assert [f.metric for f in above] == ["pixcorr"]
    assert above[0].text.startswith("above oracle (oracle), as no decoder can be")
    assert above[0].difference is not None
    assert above[0].difference.lo > 0
    # Made with the oracle's own features: the same images.
    told = said(checks(rows, "told"), "told")
    assert told[0].startswith("has the very scores of oracle (oracle) for 40 of 40 images")
    assert "test targets have leaked" in told[0]
    assert any(text.startswith("as good as oracle (oracle)") for text in said(checks(rows, "near"), "near"))


def test_a_method_that_does_not_look_at_voxels_is_exposed(rows: dict[str, Scores]) -> None:
    texts = said(checks(rows, "blind"), "blind")
    assert "has the very scores of shuffled (control) for 40 of 40 images: it shows the same whatever" in texts[0]
    assert "no better than shuffled (control): nothing here shows that it uses the voxels" in texts
    assert "worse than nearest (floor)" in texts


def test_a_control_above_chance_is_exposed(rows: dict[str, Scores]) -> None:
    fooled = rows | {"shuffled": rows["nearest"]}
    (finding,) = [f for f in checks(fooled, "honest").findings if f.label == "shuffled"]
    assert finding.text == "control above chance: something other than the voxels is used"
    assert finding.metric == "two_way_low"  # no value by chance is known of PixCorr
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx(rows["nearest"]["two_way_low"].mean() - 0.5)


def test_a_metric_whose_floor_is_as_good_as_its_oracle_judges_no_leak(rows: dict[str, Scores]) -> None:
    blurred = rows | {"mean": rows["oracle"], "leak": rows["leak"]}
    found = checks(blurred, "leak")
    assert (
        said(found, "oracle")
        == ["not better than mean (floor): here the metric cannot tell good images from bad ones"] * 2
    )
    assert not any("leaked" in text for text in said(found, "leak")[1:])
    assert all(np.isnan(standing.share) for standing in found.standings)


def test_lower_is_better_turns_the_difference_round() -> None:
    close, far = ({"feature_distance": x + 0.01 * RNG.normal(size=N)} for x in (0.2, 0.6))
    a, b = judged("a", close), judged("mean", far)
    gain = better_by(a, b, "feature_distance")
    assert gain is not None
    assert gain.lo > 0.3
    assert best([b, judged("random", close)], "floor", "feature_distance").label == "random"  # type: ignore[union-attr]
    assert checked([a, b], "feature_distance").findings == []
    worse = checked([judged("a", far), judged("mean", close)], "feature_distance").findings
    assert [f.text for f in worse] == ["worse than mean (floor)"]


def test_only_what_can_be_judged_is_judged() -> None:
    scores = {"pixcorr": RNG.uniform(size=N), "consistency_pixcorr": np.ones(N)}
    metrics = ("pixcorr", "two_way_low", "consistency_pixcorr")
    assert checked([judged("a", scores), judged("b", scores)], *metrics) == SanityChecks()  # nothing to judge by
    found = checked([judged("a", scores), judged("mean", {"pixcorr": np.full(N, np.nan)})], *metrics)
    assert [standing.metric for standing in found.standings] == ["pixcorr"]
    assert found.findings == []
    one, other = judged("a", scores), judged("mean", scores, subject="subj02")
    assert checked([one, other], *metrics).findings == []  # rows of other subjects say nothing
    assert has_room([one], "pixcorr")


def test_same_images_needs_telling_metrics() -> None:
    ties = {"two_way_low": np.repeat([0.5, 1.0], N // 2)}
    assert same_images(judged("a", ties), judged("mean", ties)).size == 0
    values = RNG.uniform(size=N)
    a, b = judged("a", {"pixcorr": values}), judged("mean", {"pixcorr": values[::-1].copy()})
    assert same_images(a, b).sum() == 0


@pytest.fixture
def table(rows: dict[str, Scores], tmp_path: Path) -> Table:
    """Run folders of a cheat, a leak and the rows that expose them, gathered as `nd table` does."""
    settings = {"cheat": ("seed", 1), "leak": ("seed", 2), "oracle": ("features", "oracle"),
                "shuffled": ("control", "shuffled_voxels"), "nearest": ("seed", 3), "mean": ("seed", 4)}  # fmt: skip
    entries = []
    for name, (field, value) in settings.items():
        cfg = config(tmp_path)
        setattr(cfg, field, value)
        entries.append(Entry(Row(label=name, role=ROLES.get(name, "method")), cfg.subject.name, cfg))
        fake_scores(cfg, rows[name])
    spec = TableSpec(name="tiny", folder=Path(), title="T", experiment="scenes", subjects=["subj01"],
                     columns=COLUMNS, rows=[e.row for e in entries])  # fmt: skip
    return collect(spec, entries, "nd run table=tiny")


def test_a_table_says_it(table: Table, rows: dict[str, Scores]) -> None:
    shown = text(table)
    assert "Sanity checks: methods between their floors and their ceiling" in shown
    assert "cheat: has the very scores of nearest (floor) for 40 of 40 images" in shown
    assert "cheat: no better than nearest (floor) (PixCorr 0.000 [0.000, 0.000]; low 0.0% [0.0%, 0.0%])" in shown
    assert "leak: above oracle (oracle), as no decoder can be: test targets must have leaked (PixCorr 0." in shown
    assert "nothing found" not in shown
    for shape in (markdown, latex):
        assert "Sanity checks: methods" in shape(table)
    line = next(line for line in shown.splitlines() if line.lstrip().startswith("leak") and "PixCorr" in line)
    assert f"{rows['leak']['pixcorr'].mean():.3f}" in line
    (first, *_) = csv.DictReader(io.StringIO(csv_files(table)["-sanity-checks.csv"]))
    assert (first["label"], first["metric"]) == ("cheat", "pixcorr")
    floors = [rows[name]["pixcorr"].mean() for name in ("nearest", "mean")]
    assert float(first["floor"]) == max(floors)
    wanted = (floors[0] - max(floors)) / (rows["oracle"]["pixcorr"].mean() - max(floors))
    assert float(first["share"]) == pytest.approx(wanted)


def test_a_clean_table_says_so(table: Table) -> None:
    clean = Table(table.spec, table.rows, [], sanity=replace(table.sanity, findings=[]))
    every = "every method is above its floors and controls, below its oracle, and controls are at chance"
    assert f"  nothing found: {every}\n" in text(clean)
    named = Table(
        table.spec, table.rows, [], sanity=replace(table.sanity, findings=[Finding("a", "subj01", "as it is")])
    )
    assert "  a: as it is\n" in text(named)


def test_a_clean_table_says_nothing_of_rows_that_it_lacks(table: Table) -> None:
    def said(*roles: str, columns: int = 2) -> str:
        rows = [row for row in table.rows if row.row.role in ("method", *roles)]
        return none_found(replace(table, rows=rows, spec=replace(table.spec, columns=COLUMNS[:columns])))

    assert said("floor") == "nothing found: every method is above its floors"
    assert said("oracle") == "nothing found: every method is below its oracle"
    assert said("control") == "nothing found: every method is above its controls, and controls are at chance"
    assert said("control", columns=1) == "nothing found: every method is above its controls"  # PixCorr has no chance


def test_scores_are_compared_in_the_order_of_ids_whatever_that_of_lines(table: Table) -> None:
    path = table.rows[0].run.path / "per_image.csv"
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *lines[::-1]]), encoding="utf-8")
    left_so(path.parent)
    again = collect(table.spec, [row.entry for row in table.rows], "nd run table=tiny")
    assert repr(again.sanity) == repr(table.sanity)


def test_rows_that_share_predictions_share_a_line(rows: dict[str, Scores], tmp_path: Path) -> None:
    true = RNG.normal(size=(30, 12))
    few = asdict(diversity(true * np.geomspace(1, 0.01, 12), true))
    all_the_same, no_targets = asdict(diversity(true, true)), {"run": "", "diversity": {}}
    said_by_run = {
        "cheat": {"run": "p1", "diversity": {"z": few, "c": all_the_same}},
        "leak": {"run": "p2", "diversity": {"z": all_the_same}},
        "near": {"run": "p1", "diversity": {"z": few, "c": all_the_same}},
        "oracle": {"run": "p3", "diversity": {"z": few}},  # no method
        "mean": no_targets,
    }
    entries = []
    for seed, (name, decoded) in enumerate(said_by_run.items()):
        cfg = config(tmp_path)
        cfg.seed, cfg.features = seed, "oracle" if name == "oracle" else "predicted"
        fake_scores(cfg, rows[name], decoded=decoded)
        entries.append(Entry(Row(label=name, role=ROLES.get(name, "method")), cfg.subject.name, cfg))
    spec = TableSpec(name="tiny", folder=Path(), title="T", experiment="scenes", subjects=["subj01"],
                     columns=COLUMNS, rows=[e.row for e in entries])  # fmt: skip
    made = collect(spec, entries, "nd run table=tiny")
    assert [(one.labels, one.target) for one in made.sanity.decoded] == [
        (("cheat", "near"), "z"), (("cheat", "near"), "c"), (("leak",), "z"),
    ]  # fmt: skip
    assert (made.sanity.decoded[0].ratio, made.sanity.decoded[0].n) == (few["predicted"] / few["true"], 30)
    shown = text(made)
    assert "Diversity: effective dimension of what was decoded" in shown
    line = next(line.split() for line in shown.splitlines() if line.split()[:3] == ["cheat,", "near", "z"])
    assert line[3:] == [
        "30",
        *(f"{few[name]:.1f}" for name in ("predicted", "true")),
        f"{few['predicted'] / few['true']:.2f}",
    ]


def test_the_noise_ceiling_of_the_voxels(rows: dict[str, Scores], tmp_path: Path) -> None:
    cfg = config(tmp_path)
    assert voxel_ceiling(cfg) is None, "nothing is prepared"
    data = cfg.data
    data.n_train, data.n_val, data.n_test, data.n_voxels, data.subjects = 20, 5, 5, 40, ["subj01"]
    prepare(cfg)
    found = voxel_ceiling(cfg)
    assert found is not None
    with h5py.File(Path(cfg.paths.data) / "scenes" / "subj01.h5") as file:
        ncsnr = file["ncsnr"][:].astype(np.float64)
    share = ncsnr**2 / (ncsnr**2 + 1 / 3)
    assert found["median"] == pytest.approx(np.median(share))
    assert found["high"] == pytest.approx(np.percentile(share, 95))
    assert (found["n_voxels"], found["n_trials"]) == (open_subject(cfg).n_voxels, 3)
    floor = replace(cfg, seed=5)
    fake_scores(cfg, rows["honest"], voxels=found)
    fake_scores(floor, rows["mean"])
    entries = [Entry(Row(label="a"), "subj01", cfg), Entry(Row(label="b", role="floor"), "subj01", floor)]
    spec = TableSpec(name="tiny", folder=Path(), title="T", experiment="scenes", subjects=["subj01"],
                     columns=COLUMNS, rows=[e.row for e in entries])  # fmt: skip
    shown = text(collect(spec, entries, "nd run"))
    assert f"noise ceiling of subj01's {len(ncsnr)} voxels" in shown
    assert f"means over 3 trials: median {np.median(share):.2f}" in shown
