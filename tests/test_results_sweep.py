"""The table that a sweep ends with: on folders made without any model, and by a command on the smallest data."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_commands import nd, succeed
from helpers_results import N_IMAGES, config, fake_scores

from nd.config import Config
from nd.config.application import read_command
from nd.config.sweeps import Point
from nd.evaluation.scores import read_scores
from nd.run import rows_at
from nd.runs.folder import RunFolder
from nd.tables import specs
from nd.tables.specs import Entry, Row
from nd.tables.sweep import ON_TEST, SweepTable, sweep_table, write_sweep
from nd.tables.sweep_plots import sweep_plot

KAPPAS, ETAS = ("0", "1e-1", "10"), ("0.2", "0.5")


def guided(root: Path, kappa: str, eta: str, subject: str = "subj01") -> Config:
    cfg = config(root)
    return replace(
        cfg,
        guidance=replace(cfg.guidance, kappa=float(kappa), eta=float(eta)),
        subject=replace(cfg.subject, name=subject),
    )


def entry(cfg: Config, label: str = "guided") -> Entry:
    return Entry(Row(label=label), cfg.subject.name, cfg)


def score(kappa: str, eta: str) -> float:
    return round(0.1 + 0.1 * KAPPAS.index(kappa) + 0.03 * ETAS.index(eta) * (kappa != "0"), 3)


def grid(root: Path, missing: Sequence[tuple[str, str]] = ()) -> list[tuple[dict[str, str], Entry]]:
    """Every point of kappa and eta, finished but for some."""
    points = []
    for kappa in KAPPAS:
        for eta in ETAS:
            cfg = guided(root, kappa, eta)
            if (kappa, eta) not in missing and not RunFolder.open(cfg, "evaluate").done:
                fake_scores(
                    cfg, {"pixcorr": np.full(N_IMAGES, score(kappa, eta)), "feature_distance": np.ones(N_IMAGES)}
                )
            points.append(({"guidance.kappa": kappa, "guidance.eta": eta}, entry(cfg)))
    return points


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_grid_is_one_table_with_a_column_per_key(tmp_path: Path) -> None:
    table = sweep_table(grid(tmp_path, missing=[("10", "0.5")]))
    written = write_sweep(table, tmp_path / "results")
    assert [path.name for path in written] == [f"{table.name}{suffix}" for suffix in (".md", ".csv", ".png")]
    lines = read_csv(written[1])
    scored = [line for line in lines if line["metric"] == "pixcorr"]
    assert {(line["guidance.kappa"], line["guidance.eta"]): float(line["mean"]) for line in scored} == {
        (kappa, eta): pytest.approx(score(kappa, eta))
        for kappa in KAPPAS
        for eta in ETAS
        if (kappa, eta) != ("10", "0.5")
    }
    left = [line for line in lines if line["state"] != "done"]
    assert [(line["guidance.kappa"], line["guidance.eta"], line["state"], line["mean"]) for line in left] == [
        ("10", "0.5", "missing", "")
    ]
    text = written[0].read_text(encoding="utf-8")
    assert text == table.text
    assert "6 points, 5 runs; points that are the same run were done once." in text
    assert "Protocol scenes v1, 8 test images, simulated fMRI" in text
    assert ON_TEST in text
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert cells[0] == ["guidance.kappa", "guidance.eta", "pixcorr ↑", "run"]
    assert cells[2][:3] == ["0", "0.2, 0.5", "0.100 [0.090, 0.120]"]
    assert cells[3][:3] == ["1e-1", "0.2", "0.200 [0.190, 0.220]"]
    assert cells[-1][2:] == ["-", f"{RunFolder.open(guided(tmp_path, '10', '0.5'), 'evaluate').run_id} MISSING"]


def test_the_name_is_that_of_the_points_whatever_their_order(tmp_path: Path) -> None:
    points = grid(tmp_path)
    assert sweep_table(points).name == sweep_table(points[::-1]).name
    assert sweep_table(points).name != sweep_table(points[1:]).name


def drawn(table: SweepTable) -> list[object]:
    plot = sweep_plot(table)
    assert plot is not None
    return [axis for axis in plot.axes if axis.get_visible()]


def test_two_keys_are_a_map_and_one_is_a_curve(tmp_path: Path) -> None:
    points = grid(tmp_path, missing=[("10", "0.5")])
    (shown,) = drawn(sweep_table(points))
    image = shown.get_images()[0].get_array()
    expected = [[score(kappa, eta) for eta in ETAS] for kappa in KAPPAS]
    np.testing.assert_allclose(image.filled(np.nan)[:2], expected[:2])
    np.testing.assert_allclose(image.filled(np.nan)[2], [expected[2][0], np.nan])
    assert [label.get_text() for label in shown.get_yticklabels()] == list(KAPPAS)
    assert {text.get_text() for text in shown.texts} >= {"0.200", "0.230", "0.300"}

    one = [
        ({"guidance.kappa": values["guidance.kappa"]}, row) for values, row in points if values["guidance.eta"] == "0.2"
    ]
    (curve,) = drawn(sweep_table(one[::-1]))
    line = curve.get_lines()[0]
    assert line.get_xdata().tolist() == [0, 0.1, 10]
    np.testing.assert_allclose(line.get_ydata(), [score(kappa, "0.2") for kappa in KAPPAS])
    assert curve.get_xscale() == "linear"  # there is a zero
    (logarithmic,) = drawn(sweep_table(one[1:]))
    assert logarithmic.get_xscale() == "log"
    three = [(values | {"seed": "1"}, row) for values, row in points]
    assert sweep_plot(sweep_table(three)) is None


def test_scores_of_other_images_are_said_not_to_compare(tmp_path: Path) -> None:
    points = [({"seed": name}, entry(guided(tmp_path, "1e-1", "0.2", name))) for name in ("subj01", "subj02")]
    for (_, one), test_set in zip(points, ("a", "b"), strict=True):
        fake_scores(one.cfg, {"pixcorr": np.ones(N_IMAGES)}, test_set=test_set)
    table = sweep_table(points)
    assert "Points differ in protocol or images: their scores do not compare." in table.text
    assert ON_TEST not in table.text  # nobody chooses a seed
    assert sweep_plot(table) is None


WORDS = [
    "experiment=scenes", "debug=fast", "table=", "data.subjects=[subj01]", "protocol.brain=[]", "protocol.network=none",
    "trainer.accelerator=cpu", "trainer.progress=false", "paths.root=.",
]  # fmt: skip


def test_a_multirun_ends_with_its_table_and_leaves_no_empty_folders(tmp_path: Path) -> None:
    sweep = ["run", *WORDS, "-m", "method=mean_image,random_image", "seed=1,2"]
    first = succeed(*sweep, cwd=tmp_path)
    (path,) = (tmp_path / "results").glob("sweep-*.csv")
    assert "4 points, 3 runs; points that are the same run were done once." in first.out  # a mean draws nothing
    assert "Made in debug sizes: the numbers mean nothing." in first.out
    lines = [line for line in read_csv(path) if line["metric"] == "pixcorr"]
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("mean_image", "1"), ("mean_image", "2"), ("random_image", "1"), ("random_image", "2"),
    ]  # fmt: skip
    for line in lines:
        (folder,) = (tmp_path / "runs" / "evaluate").glob(f"*{line['method']}-{line['run']}")
        assert float(line["mean"]) == read_scores(folder).scores["pixcorr"].mean
    assert len({line["run"] for line in lines}) == 3
    assert not (tmp_path / "runs" / "multirun").exists()
    before = sorted(tmp_path.rglob("*"))
    again = succeed(*sweep, cwd=tmp_path)
    assert again.out.split("### Sweep")[1].splitlines()[:10] == first.out.split("### Sweep")[1].splitlines()[:10]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_of_which_a_job_fails_has_its_table_too(tmp_path: Path) -> None:
    broken = [*WORDS, "backbone.weights=package://nothing"]  # which a mean image does not read
    done = nd("run", *broken, "-m", "method=vae,mean_image", cwd=tmp_path)
    assert done.code == 2
    assert "backbone.weights" in done.err
    assert "2 points, 2 runs." in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert [(line.split()[1], "MISSING" in line) for line in lines[1:]] == [("vae", True), ("mean_image", False)]
    assert not (tmp_path / "runs" / "multirun").exists()


# ---- a grid over a table whose rows set the same key


SPEC = """
title: Guidance
experiment: scenes
subjects: [subj01]
rows:
  - label: kappa {kappa}
    overrides: [method=neuraldiffuser_ridge]
    grid: {guidance.kappa: [0.3, 1]}
  - {label: unguided, overrides: [method=neuraldiffuser_ridge, guidance.kappa=0]}
  - {label: as given, overrides: [method=neuraldiffuser_ridge]}
"""


def test_what_a_row_sets_itself_is_what_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    words = ["spec.yaml", "guidance.kappa=30,100", "method.steps=20,30", "dry_run=true"]
    done = succeed("sweep", *words, cwd=tmp_path)
    assert "keep their own value (guidance.kappa: kappa {kappa}, unguided)" in done.out
    assert "10 points, 10 runs: 10 missing" in done.out
    with chdir(tmp_path):
        command = read_command("sweep", ["table=spec.yaml", *words[1:]], specs.rows_of)
        rows = sweep_table(rows_at(command.points())).rows
    found = {(row.entry.label, *row.values.items()): row.entry.cfg for row in rows}
    assert len(found) == 10
    for (label, *values), cfg in found.items():
        assert dict(values)["method.steps"] == str(cfg.method.steps)
        said = dict(values).get("guidance.kappa")
        assert float(said) == cfg.guidance.kappa if said else label.startswith("unguided")


def test_without_a_table_every_point_stays_a_point(tmp_path: Path) -> None:
    cfg = guided(tmp_path, "0", "0.2")
    points = [Point({"guidance.eta": "0.2"}, cfg), Point({"guidance.eta": "0.20"}, cfg), Point({}, cfg)]
    assert [values for values, _ in rows_at(points)] == [point.values for point in points]
