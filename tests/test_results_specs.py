"""What a spec can say beside its rows: points of a grid, settings of all rows, nothing of columns, nothing at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_files import left_so
from helpers_results import N_IMAGES, config, fake_scores

from nd.config.application import check, compose, derive
from nd.errors import UserError
from nd.evaluation.scores import read_scores
from nd.tables import formats
from nd.tables.csv_export import csv_files
from nd.tables.rows import networks_of
from nd.tables.specs import Column, Entry, Pair, Row, TableSpec, expand, load_spec, rows_of, shown_rows, spec_of
from nd.tables.table import Table, collect

PIXCORR = np.random.default_rng(0).uniform(0.2, 0.6, (2, N_IMAGES))
GRID = {
    "label": "kappa {kappa}, eta {eta}",
    "overrides": ["method=neuraldiffuser_ridge"],
    "grid": {"guidance.kappa": ["3e3", "3e4", "3e5"], "guidance.eta": [0.1, 1.0]},
}


def write(folder: Path, name: str = "own", **fields: object) -> str:
    spec = {"title": "T", "experiment": "scenes", "subjects": ["subj01"], "rows": [{"label": "a"}]} | fields
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return str(path)


# ---- grids


def test_a_grid_stands_for_a_row_at_each_of_its_points(tmp_path: Path) -> None:
    name = write(tmp_path, rows=[GRID, {"label": "none", "overrides": ["guidance=none"]}])
    spec = load_spec(name)
    labels = [f"kappa {kappa}, eta {eta}" for kappa in ("3e3", "3e4", "3e5") for eta in ("0.1", "1.0")]
    assert [row.label for row in spec.rows] == [*labels, "none"]
    assert spec.rows[1].point == {"guidance.kappa": "3e3", "guidance.eta": "1.0"}  # as they were written
    assert spec.rows[-1].point == {}
    cfgs = [entry.cfg for entry in expand(spec, compose([f"table={name}"]), derive)]
    assert [(c.guidance.kappa, c.guidance.eta) for c in cfgs[:3]] == [(3e3, 0.1), (3e3, 1.0), (3e4, 0.1)]
    assert {c.method.name for c in cfgs[:6]} == {"neuraldiffuser_ridge"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"guidance.kappa": []}}, "grid names guidance.kappa without a value"),
        ({"grid": {"guidance.kappa": [1, 1]}, "label": "{kappa}"}, "grid names a value of guidance.kappa twice"),
        ({"grid": {"guidance.kappa": [1, 2]}, "label": "a"}, r"its label lacks \{kappa\}, a key of its grid"),
        ({"grid": {"guidance.kappa": 1}}, r"rows\[0\]: grid is int, wanted a list"),
        ({"place": 1}, "has no field 'place'"),
    ],
)
def test_grids_that_say_nothing_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec(write(tmp_path, rows=[GRID | changes]))


def test_debug_sizes_thin_a_grid_and_what_is_said_of_it(tmp_path: Path) -> None:
    name = write(
        tmp_path,
        rows=[GRID, {"label": "none"}],
        columns=[{"metric": "pixcorr"}],
        paired=[{"a": "kappa 3e5, eta 1.0", "b": "none"}, {"a": "kappa 3e4, eta 1.0", "b": "none"}],
        images=["none", "kappa 3e5, eta 0.1"],
        expected={"kappa 3e5, eta 0.1": {"pixcorr": 0.5}, "none": {"pixcorr": 0.5}},
    )
    spec = spec_of(compose([f"table={name}", "debug=fast"]))
    assert [row.point.get("guidance.kappa") for row in spec.rows] == ["3e3", "3e3", "3e4", "3e4", None]
    assert [pair.a for pair in spec.paired] == ["kappa 3e4, eta 1.0"]
    assert (spec.images, list(spec.expected)) == (["none"], ["none"])
    assert len(spec_of(compose([f"table={name}"])).rows) == 7
    with pytest.raises(UserError, match=r"debug\.limit_grid: -1 is negative; 0 means all"):
        compose([f"table={name}", "debug.limit_grid=-1"])


def test_csv_has_a_column_for_each_key_of_a_grid(tmp_path: Path) -> None:
    rows = [*Row(label="{kappa}", grid={"guidance.kappa": ["3e3"]}).points(), Row(label="none")]
    made = table(tmp_path, rows)
    lines = list(csv.DictReader(io.StringIO(csv_files(made)[".csv"])))
    assert {(line["row"], line["guidance.kappa"]) for line in lines} == {("3e3", "3e3"), ("none", "")}


# ---- settings of all rows


def test_what_is_given_wins_over_the_settings_of_all_rows(tmp_path: Path) -> None:
    rows = [
        {"label": "a"},
        {"label": "b", "overrides": ["method.repeats=3"]},
        {"label": "mean", "overrides": ["method=mean_image"]},
    ]
    name = write(tmp_path, overrides=["method.repeats=7", "protocol.n_boot=90"], rows=rows)

    def found(*given: str) -> list[tuple[int, int]]:
        entries = expand(load_spec(name), compose([f"table={name}", *given]), derive)
        return [(entry.cfg.method.n_repeats, entry.cfg.protocol.n_boot) for entry in entries]

    assert found() == [(7, 90), (3, 90), (1, 90)]  # a row that has no such field passes it over
    assert found("method.repeats=5") == [(5, 90), (3, 90), (1, 90)]
    assert found("protocol.n_boot=60") == [(7, 60), (3, 60), (1, 60)]
    check("run", [f"table={name}"], rows=rows_of)
    with pytest.raises(UserError, match=r"method\.repeets"):
        check("run", [f"table={write(tmp_path, 'typo', overrides=['method.repeets=7'])}"], rows=rows_of)


# ---- columns


def table(root: Path, rows: list[Row], **spec: object) -> Table:
    """A table of finished rows, whose scores are made up."""
    entries = []
    for k, row in enumerate(rows):
        cfg = config(root)
        cfg.seed = 50 + k
        entries.append(Entry(row, "subj01", cfg))
        fake_scores(cfg, {"pixcorr": PIXCORR[k], **({"ssim": 1 - PIXCORR[k]} if k else {}), "two_way_low": PIXCORR[k]})
    fields = {"name": "t", "folder": root, "title": "T", "rows": rows} | spec
    return collect(TableSpec(**fields), entries, "nd run")  # type: ignore[arg-type]


def test_without_columns_a_table_shows_what_all_rows_have(tmp_path: Path) -> None:
    rows = [Row(label="a"), Row(label="b")]
    made = table(tmp_path, rows, paired=[Pair(a="a", b="b")])
    assert [(c.metric, c.title, c.percent) for c in made.columns] == [
        ("pixcorr", "PixCorr", False), ("two_way_low", "two_way_low", True),
    ]  # fmt: skip
    assert [difference.metric for difference in made.differences] == ["pixcorr", "two_way_low"]
    assert made.differences[0].mean == pytest.approx((PIXCORR[0] - PIXCORR[1]).mean())


def test_what_decoded_targets_retrieve_can_be_a_column(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    folder = fake_scores(cfg, {"pixcorr": PIXCORR[0]})
    found = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    one = {
        "mean": 0.4,
        "lo": 0.35,
        "hi": 0.45,
        "chance": 0.125,
        "better": "higher",
        "n_loops": 30,
        "n_images": 8,
        "n_candidates": 8,
        "all_images": False,
    }
    (folder / "scores.json").write_text(json.dumps(found | {"retrieval": {"retrieval_c_image": one}}), encoding="utf-8")
    left_so(folder)
    assert read_scores(folder).scores["retrieval_c_image"].mean == 0.4
    columns = [Column(metric="retrieval_c_image", name="image, by c", percent=True), Column(metric="pixcorr")]
    rows = [Row(label="a")]
    spec = TableSpec(name="t", folder=tmp_path, title="T", rows=rows, columns=columns)
    made = collect(spec, [Entry(rows[0], "subj01", cfg)], "nd run")
    shown = formats.markdown(made)
    assert "40.0% [35.0%, 45.0%]" in shown
    assert "12.5%" in shown  # chance
    assert "95% intervals of the mean over draws of candidates" in shown
    assert networks_of("retrieval_c_image", ["efficientnet_lite0"]) == set()


# ---- debug sizes


def test_tables_in_debug_sizes_say_so(tmp_path: Path) -> None:
    made = table(tmp_path, [Row(label="a")])
    assert "debug" not in made.title + made.caption
    made.rows[0].entry.cfg.debug.name = "fast"
    assert made.title.endswith("simulated fMRI. Made in debug sizes: the numbers mean nothing.")
    assert made.caption.startswith("Made in debug sizes: the numbers mean nothing. subj01;")
    assert "the numbers mean nothing" in formats.markdown(made)
    assert "the numbers mean nothing" in formats.text(made)


# ---- no spec


def test_without_a_spec_the_composed_method_stands_between_floors_and_ceiling() -> None:
    cfg = compose(["data=own", "data.name=mylab", "method=takagi"])
    spec = spec_of(cfg)
    assert (spec.name, spec.title) == ("mylab-takagi", "takagi on mylab")
    assert [(row.label, row.role) for row in spec.rows] == [
        ("takagi", "method"), ("true features", "oracle"), ("shuffled voxels", "control"),
        ("nearest training image", "floor"), ("mean training image", "floor"), ("random training image", "floor"),
    ]  # fmt: skip
    entries = expand(spec, cfg, derive)
    assert {entry.cfg.data.name for entry in entries} == {"mylab"}
    assert [list(entry.cfg.method.targets) for entry in entries[:4]] == [["z40", "c"]] * 4
    assert [entry.cfg.features for entry in entries[:2]] == ["predicted", "oracle"]


def test_a_method_that_decodes_nothing_has_no_control_and_no_ceiling() -> None:
    assert [row.role for row in spec_of(compose(["method=mean_image"])).rows] == ["method", "floor", "floor", "floor"]


def test_run_keeps_to_the_composed_row_and_table_shows_all() -> None:
    cfg = compose(["data=own"])
    assert rows_of(cfg, derive) == []
    assert len(shown_rows(cfg, derive)) == 6
    assert len(rows_of(compose(["data=own", "table=default"]), derive)) == 6


def test_a_spec_of_ones_own_can_leave_out_the_experiment(tmp_path: Path) -> None:
    name = write(tmp_path, experiment="", subjects=[], title="{method}, {data}", rows=[{"label": "{method}, as it is"}])
    cfg = compose([f"table={name}", "data=own", "data.name=lab", "subject.name=sub-02"])
    spec = spec_of(cfg)
    assert (spec.name, spec.title, spec.rows[0].label) == ("own", "neuraldiffuser, lab", "neuraldiffuser, as it is")
    assert [entry.subject for entry in expand(spec, cfg, derive)] == ["sub-02"]
