"""Every table of experiments/ says what it is, composes, and runs in its smallest size; so does that of no spec.

Tables of NSD run on a simulated subject in NSD's files. Networks that are not shipped are tiny ones of random weights.
"""

from __future__ import annotations

import os
import re
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from helpers_commands import ROOT, Done, nd, succeed
from helpers_digits import noise_file
from helpers_gan import tiny_generator
from helpers_scripts import load_script
from helpers_versatile import tiny_versatile
from PIL import Image

from nd.config.application import _compose, compose, derive
from nd.run import run_rows
from nd.runs.identity import reads_predictions, reads_targets
from nd.tables import formats
from nd.tables.report import write_report
from nd.tables.specs import available, expand, load_spec, spec_of
from nd.tables.table import collect

SPECS = [name for name in available() if name != "default"]
NSD = [name for name in SPECS if load_spec(name).experiment == "nsd"]
PUBLISHED = ("main", "main982", "ablation_guidance", "ablation_components", "consistency", "one_hour",
             "minddiffuser_table2", "brain_diffuser_ablation", "retrieval")  # fmt: skip
NO_TWIN = ("main982",)  # another cut of the same images, which the embedded world does not have
SMALL = ["debug=fast", "debug.limit_images=3", "trainer.progress=false"]
ON_A_SIMULATED_TREE = [
    "data=scenes_nsd", "data.subjects=[subj01]", "subject=subj01", "data.split=nsd1000", "backbone=scenes",
    "protocol=scenes", "network=scenes", "training.pretrain=false",
]  # fmt: skip
# One of NSD, with ablations, and one of the embedded world, with a grid; all of them where ND_ALL_EXPERIMENTS is set.
COVERING = ("brain_diffuser_ablation", "scenes_guidance")
RUN = SPECS if os.environ.get("ND_ALL_EXPERIMENTS") else COVERING
TOWER = 128  # numbers of the embedding of Scenes' image tower
PAGES = ("brain_diffuser_ablation", "scenes_guidance")  # of NSD and of the embedded world, the second with a grid
DEBUG = "the numbers mean nothing"


# ---- what they say


@pytest.mark.parametrize("name", available())
def test_a_spec_begins_with_how_it_is_run_what_it_costs_and_what_it_compares_with(name: str) -> None:
    text = (ROOT / "experiments" / f"{name}.yaml").read_text(encoding="utf-8")
    head = "\n".join(line for line in text.split("\ntitle:")[0].splitlines() if line.startswith("#"))
    assert re.search(rf"^#   command .*\b{name}\b|^#   command   make demo", head, re.MULTILINE)
    assert re.search(r"^#   (cost|time) ", head, re.MULTILINE)
    if name != "default":
        assert re.search(r"^#   compares ", head, re.MULTILINE)
        spec = load_spec(name)
        lacking = [row.label for row in spec.rows if row.label not in spec.expected]
        assert not lacking or "not yet run" in head
        assert spec.tolerance == 0.02
        assert spec.published or name not in NSD or "nothing printed" in head or "images alone" in head


def test_every_published_table_has_a_spec_and_a_twin_on_the_embedded_world() -> None:
    twins = {
        "main": "scenes_methods",
        "ablation_guidance": "scenes_guidance",
        "ablation_components": "scenes_components",
    }
    assert set(PUBLISHED) <= set(NSD)
    for name in set(PUBLISHED) - set(NO_TWIN):
        assert load_spec(twins.get(name, f"scenes_{name}")).experiment == "scenes"
    assert not any(load_spec(name).expected for name in NSD), "nothing was run on NSD"


@pytest.mark.parametrize("name", ["default", *NSD])
def test_a_spec_composes_and_its_rows_are_what_they_say(name: str) -> None:
    """As it stands; those of the embedded world are run below, and a table refuses a row that is not what it says."""
    alike = ["subject=subj01", "debug.limit_grid=2"]  # other people and points differ in a value alone
    cfg = compose([f"table={name}", *alike])
    spec = spec_of(cfg)
    entries = expand(spec, cfg, derive)
    assert [entry.row.label for entry in entries] == [row.label for row in spec.rows]
    for entry in entries:
        assert entry.cfg.table == name
        assert (entry.row.role == "oracle") == (entry.cfg.features == "oracle" and reads_targets(entry.cfg)), (
            entry.label
        )
        assert (entry.row.role == "control") == (entry.cfg.control != "none" and reads_predictions(entry.cfg)), (
            entry.label
        )
    assert {"oracle", "control", "floor", "method"} <= {row.role for row in spec.rows}


# ---- that they run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is written, so that tables find the rows they share; with the simulated tree of NSD."""
    folder = tmp_path_factory.mktemp("experiments")
    small("prepare", "data=scenes", "layout=nsd", folder=folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name tiny networks of random weights in place of those that are not shipped."""
    folder = tmp_path_factory.mktemp("networks")
    tiny = tiny_versatile(folder)
    return [
        f"target.clip={tiny.clip}", f"target.vdvae={tiny.vdvae}", "target.vdvae_layers=3",
        f"method.versatile={tiny.versatile}", "target.network=tower", f"method.weights={tiny_generator(folder, TOWER)}",
    ]  # fmt: skip


def small(verb: str, *words: str, folder: Path) -> Done:
    """Run a verb in the smallest size."""
    return succeed(verb, *SMALL, f"paths.root={folder}", *words, cwd=folder)


def given_for(name: str, networks: list[str], folder: Path) -> list[str]:
    """What a table is given here in place of data and networks that are not at hand."""
    methods = {entry for row in load_spec(name).rows for entry in row.overrides if entry.startswith("method=")}
    fields = {
        "brain_diffuser": ("target.clip", "target.vdvae", "method.versatile"),
        "ic_gan": ("target.network", "method.weights"),
    }
    wanted = [key for method, keys in fields.items() for key in keys if any(method in text for text in methods)]
    given = [word for word in networks if word.startswith(tuple(wanted))] if wanted else []
    if name == "digits69":
        path = folder / "digits.mat"
        return [*given, f"data.file={path if path.is_file() else noise_file(path)}"]
    return [*given, *(ON_A_SIMULATED_TREE if name in NSD else [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_table_runs_in_its_smallest_size(name: str, folder: Path, networks: list[str]) -> None:
    """Its rows are composed once here; `nd run` and `nd table` are tested with the commands of the README."""
    cfg = _compose([f"table={name}", *SMALL, f"paths.root={folder}", *given_for(name, networks, folder)])  # as verbs do
    spec = spec_of(cfg)
    entries = expand(spec, cfg, derive)
    with chdir(folder):
        assert run_rows(entries, lambda line: None, quiet=True) == {}
        table = collect(spec, entries, "nd run")
        if name in PAGES:
            write_report(table, folder / "results", "nd run")
            assert DEBUG in (folder / "results" / f"{name}.html").read_text(encoding="utf-8")
    shown = formats.markdown(table)
    assert [row.row.label for row in table.rows] == [row.label for row in spec.rows]
    assert DEBUG in shown.splitlines()[0] + table.caption
    assert table.columns


@pytest.mark.slow  # its commands stand in docs/ too, and run with test_readme.py
def test_own_data_has_a_table_and_a_page_without_a_spec(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(60):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    np.save(folder / "voxels.npy", rng.normal(size=(120, 30)).astype(np.float32))
    np.save(folder / "image_ids.npy", np.arange(120) % 60)
    files = [f"data.{key}={folder}/{key}.npy" for key in ("voxels", "image_ids")]
    own = ["data=own", "data.name=mylab", "data.image_size=32", "data.n_test=6", "data.n_val=6", "method=ridge_pixels"]
    small("prepare", *own, *files, f"data.images={folder}/images", folder=folder)
    small("run", *own, folder=folder)  # one row alone, as ever
    missing = nd("table", *SMALL, f"paths.root={folder}", *own, cwd=folder)
    assert missing.code == 2
    assert "5 of 6 rows of table mylab-ridge_pixels have not been run" in missing.err
    (command,) = [line.strip() for line in missing.err.splitlines() if line.startswith("  nd run")]
    assert "table=default" in command.split()
    succeed(*command.split()[1:], cwd=folder)
    shown = small("table", *own, folder=folder).out
    assert "ridge_pixels on mylab - measured fMRI" in shown
    assert all(f"({role})" in shown for role in ("oracle", "control", "floor"))
    small("report", *own, folder=folder)
    written = {path.name for path in (folder / "results").iterdir()}
    assert {f"mylab-ridge_pixels.{suffix}" for suffix in ("md", "csv", "tex", "html", "png")} <= written


def test_a_table_without_its_data_says_what_the_doctor_says(tmp_path: Path) -> None:
    for verb in ("run", "table"):
        done = nd(verb, "table=consistency", f"paths.root={tmp_path}", cwd=tmp_path)
        assert done.code == 2
        assert "Sign the NSD Data Access Agreement" in done.out
        assert "MISSING    small  nsd_expdesign.mat" in done.out
        assert "give data.root=<folder of the downloaded files>" in done.err
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("method", ["neuraldiffuser_scenes", "neuraldiffuser", "takagi"])
def test_settings_are_chosen_on_images_that_nothing_was_fitted_on(method: str) -> None:
    tune = load_script("scenes-guidance/tune.py")
    cfg = compose(tune.validation(["experiment=scenes", f"method={method}"], repeats=3))
    assert (cfg.part, cfg.method.repeats) == ("val", 3)
    assert not any(getattr(mapper, "refit", False) for mapper in cfg.mappers)
