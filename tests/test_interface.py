"""The public names, runs read back, arrays scored, configurations composed and run from Python."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_files import left_so

import nd
from nd.data.prepared import Stimuli, stimuli_path
from nd.files import read_json, write_json
from nd.hdf5 import open_h5
from nd.runs.chain import StepFailed

SHRUNK = ["experiment=scenes", "debug=fast", "table=", "method=ridge_pixels", "protocol.network=none"]


def shrunk(root: Path, *more: str) -> nd.Config:
    return nd.compose(*SHRUNK, f"paths.root={root}", "trainer.progress=false", *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> nd.FinishedRun:
    """The scores of a whole small run. Read only."""
    (run,) = nd.execute(shrunk(tmp_path_factory.mktemp("finished")), progress=None)
    return run


@pytest.fixture
def moved(finished: nd.FinishedRun, tmp_path: Path) -> nd.FinishedRun:
    """The same runs in another place, to be damaged."""
    shutil.copytree(finished.path.parents[1], tmp_path / "elsewhere")
    return nd.read_run(tmp_path / "elsewhere" / "evaluate" / finished.path.name)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_none_is_a_module() -> None:
    homes = [name for names in nd._HOME.values() for name in names]
    assert sorted([*homes, "__version__"]) == nd.__all__ == dir(nd)
    assert all(getattr(nd, name).__doc__ for name in homes)
    assert not {module.name for module in pkgutil.iter_modules(nd.__path__)} & set(homes)
    with pytest.raises(AttributeError, match=r"no attribute 'score_array'. Public names: .*score_arrays"):
        _ = nd.score_array  # type: ignore[attr-defined]


def documented() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, and every method of a public class that is written in this package."""
    for name in (name for names in nd._HOME.values() for name in names):
        public = getattr(nd, name)
        if not inspect.isclass(public):
            yield name, public
            continue
        kinds = [kind for kind in public.__mro__ if kind.__module__.startswith("nd.")]
        methods = {attribute: value for kind in reversed(kinds) for attribute, value in vars(kind).items()}
        for attribute, value in methods.items():
            written = attribute == "__init__" and not dataclasses.is_dataclass(public)
            if inspect.isfunction(value) and (written or not attribute.startswith("_")):
                yield f"{name}.{attribute}", value
            elif isinstance(value, property) or hasattr(value, "attrname"):  # a cached property
                assert value.__doc__, f"{name}.{attribute} says nothing"


def test_public_functions_say_what_they_take_give_and_refuse() -> None:
    found = dict(documented())
    assert {"compose", "execute", "read_run", "score_arrays", "guide_pipeline", "tower_features"} <= set(found)
    assert {"Ridge.fit", "Ridge.predict", "FastL2LiR.__init__", "FinishedRun.source", "Config.decoding"} <= set(found)
    for name, function in found.items():
        text, signature = inspect.getdoc(function) or "", inspect.signature(function)
        given = [one for one in signature.parameters if one != "self"]
        lacking = [one for one in given if not re.search(rf"^    {one}: \S", text, re.MULTILINE)]
        assert not (given and "Args:" not in text), f"{name} has no Args"
        assert lacking == [], f"{name} does not explain {lacking}"
        silent = str(signature.return_annotation) in ("None", "Iterator[None]")
        assert silent or "Returns:" in text, f"{name} does not say what it returns"
        refuses = name not in ("Config.decoding_as", "Ridge.__init__", "FastL2LiR.__init__")
        assert not refuses or "Raises:" in text, f"{name} does not say what it raises"


def test_importing_costs_nothing_and_composing_needs_no_torch() -> None:
    light = "import sys, nd; assert 'numpy' not in sys.modules; nd.compose('experiment=scenes'); import nd.run\n"
    light += "assert callable(nd.execute) and not {'torch', 'sklearn', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)


def test_type_checkers_see_where_names_live() -> None:
    """A type checker reads the imports, the interpreter the table; py.typed says that there are types."""
    source = Path(nd.__file__).read_text(encoding="utf-8")
    checked = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    (block,) = [node for node in checked if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {node.module: tuple(one.name for one in node.names) for node in imports}
    assert seen == {f"nd.{module}": names for module, names in nd._HOME.items()}
    assert (Path(nd.__file__).parent / "py.typed").is_file()


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_with_all_it_was_made_from(finished: nd.FinishedRun) -> None:
    n_images, side = 6, 64
    assert (finished.verb, finished.source("predict").verb) == ("evaluate", "predict")
    assert finished.images.shape == (n_images, 1, side, side, 3)
    assert finished.images.dtype == np.uint8
    assert finished.predictions["pixels"].shape[0] == n_images
    assert list(finished.predictions) == ["pixels"]
    np.testing.assert_array_equal(finished.source("predict").image_ids, finished.image_ids)
    assert finished.scores["pixcorr"]["mean"] == pytest.approx(finished.per_image["pixcorr"].mean())
    assert list(finished.scores) == list(finished.per_image)
    assert finished.summary["protocol"]["name"].startswith("scenes-changed-")
    assert finished.manifest["verb"] == "evaluate"
    with open_h5(finished.source("reconstruct").path / "images.h5") as file:
        np.testing.assert_array_equal(finished.images, file["images"][:])


def test_the_configuration_is_the_one_that_was_run(finished: nd.FinishedRun) -> None:
    assert finished.config == nd.compose(*finished.config.overrides)
    assert nd.read_run(finished.config) == finished
    assert nd.read_run(finished.config, "predict") == finished.source("predict")
    assert nd.read_run(str(finished.path)) == finished


def test_runs_that_were_moved_still_know_each_other(finished: nd.FinishedRun, moved: nd.FinishedRun) -> None:
    source = moved.source("reconstruct").path
    decoy = shutil.copytree(source, source.with_name(f"a-{source.name}"))  # comes first, and is of another seed
    manifest = read_json(decoy / "manifest.json")
    write_json(decoy / "manifest.json", manifest | {"identity": manifest["identity"] | {"seed": 7}})
    with h5py.File(decoy / "images.h5", "a") as file:
        file["images"][:] = 0
    np.testing.assert_array_equal(moved.images, finished.images)
    assert moved.source("predict").path.is_relative_to(moved.path.parents[1])


def test_scores_of_arrays_are_those_of_the_run(finished: nd.FinishedRun) -> None:
    stimuli = Stimuli(stimuli_path(finished.config)).images(finished.image_ids)
    found = nd.score_arrays(finished.images, stimuli, "scenes", network="none", n_boot=50)
    assert found.summary == finished.scores
    assert found.protocol["hash"] == finished.summary["protocol"]["hash"]
    for name, values in finished.per_image.items():
        np.testing.assert_array_equal(found.per_image[name], values)


@pytest.mark.parametrize("state", ["running\n", "failed\nTraceback"])
def test_an_unfinished_run_says_how_to_finish_it(moved: nd.FinishedRun, state: str) -> None:
    (moved.path / "status").write_text(state, encoding="utf-8")
    with pytest.raises(nd.UserError, match=f"status is '{state.split()[0]}'.*: nd evaluate .*method=ridge_pixels"):
        nd.read_run(moved.path)


def test_what_is_no_run(moved: nd.FinishedRun, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", moved.path.parent):
        with pytest.raises(nd.UserError, match=f"{path} is not the folder of a run"):
            nd.read_run(path)
    with pytest.raises(nd.UserError, match=r"has not been run. Run: nd evaluate .*seed=7"):
        nd.read_run(shrunk(tmp_path, "seed=7"))


def test_damaged_files_are_named(moved: nd.FinishedRun) -> None:
    files = {"summary": "scores.json", "config": "config.yaml", "manifest": "manifest.json", "images": "manifest.json"}
    for name, file in files.items():
        (moved.path / file).write_text("{ not: [whole", encoding="utf-8")
        with pytest.raises(nd.UserError, match=f"{file} "):
            getattr(nd.read_run(moved.path), name)
    images = next(moved.path.parents[1].glob("*/*/images.h5"))
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(nd.UserError, match=r"images.h5 is not a whole HDF5 file"):
        _ = nd.read_run(images.parent).images


def test_a_run_whose_source_is_gone_or_was_never(moved: nd.FinishedRun) -> None:
    source = moved.source("reconstruct")
    with pytest.raises(nd.UserError, match="has no scores"):
        _ = source.scores
    with pytest.raises(nd.UserError, match="was not made from a reconstruct run"):
        _ = source.source("predict").images
    shutil.rmtree(source.path)
    with pytest.raises(nd.UserError, match=r"the reconstruct run that .* is not in"):
        _ = nd.read_run(moved.path).images


def test_a_configuration_of_another_version(moved: nd.FinishedRun) -> None:
    path = moved.path / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("\nseed:", "\nsed:"), encoding="utf-8")
    left_so(moved.path)
    with pytest.raises(nd.UserError, match="written by another version of nd: sed: unknown key"):
        _ = nd.read_run(moved.path).config


# ---- arrays ----------------------------------------------------------------------------------------------------------


def noisy(n: int = 6, repeats: int = 2, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (n, repeats, side, side, 3) and (n, side, side, 3)."""
    rng = np.random.default_rng(1)
    stimuli = rng.integers(256, size=(n, side, side, 3))
    images = np.clip(stimuli[:, None] + rng.normal(0, 60, (n, repeats, side, side, 3)), 0, 255)
    return images.astype(np.uint8), stimuli.astype(np.uint8)


def test_bytes_and_floats_channels_last_and_first_arrays_and_tensors_score_alike() -> None:
    images, stimuli = noisy()
    expected = nd.score_arrays(images, stimuli, "scenes", network="none")
    floats = [torch.from_numpy(np.moveaxis(a, -1, -3)).float() / 255 for a in (images, stimuli)]
    for given in (floats, [one.numpy() for one in floats], [images / np.float32(255), floats[1]]):
        found = nd.score_arrays(*given, "scenes", network="none")
        assert found.means == pytest.approx(expected.means, abs=1e-6)
    assert expected.means["pixcorr"] == pytest.approx(np.mean([correlations(images[:, r], stimuli) for r in (0, 1)]))
    lo, hi = expected.intervals["pixcorr"]
    assert lo < expected.means["pixcorr"] < hi


def correlations(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]


def test_one_image_each_is_one_repeat() -> None:
    images, stimuli = noisy()
    one = nd.score_arrays(images[:, 0], stimuli, "digits69", labels=np.arange(6) // 3)
    assert one.means == nd.score_arrays(images[:, :1], stimuli, "digits69", labels=np.arange(6) // 3).means
    assert "label_two_way" in one.per_image
    assert one.protocol["name"] == "digits69"


def test_what_cannot_be_scored_is_said() -> None:
    images, stimuli = noisy()
    wrong = {
        "shape (6, 64, 64) was found, (N, H, W, 3) or": (images[:, 0, :, :, 0], stimuli),
        "floats in [0, 1] were wanted": (images.astype(np.float32), stimuli),
        "6 reconstructions for 4 stimuli": (images, stimuli[:4]),
        "stimuli: shape (6, 2, 64, 64, 3) was found": (images, images),
    }
    for message, given in wrong.items():
        with pytest.raises(nd.UserError) as error:
            nd.score_arrays(*given, "scenes", network="none")
        assert message in str(error.value)
    for name, settings, message in [
        ("scnes", {}, "Did you mean"),
        ("scenes", {"netwrk": "none"}, "Did you mean 'protocol.network'"),
        ("scenes", {"n_boot": "many"}, "wanted a whole number"),
        ("mindeye2", {"measures": []}, "protocol.n_images=0"),
    ]:
        with pytest.raises(nd.UserError, match=message):
            nd.score_arrays(images, stimuli, name, **settings)


# ---- configurations --------------------------------------------------------------------------------------------------


def test_what_is_finished_is_not_done_again_and_steps_are_reported(finished: nd.FinishedRun) -> None:
    before = (finished.path / "scores.json").stat().st_mtime_ns
    lines: list[str] = []
    assert nd.execute(finished.config, progress=lines.append) == [finished]
    assert (finished.path / "scores.json").stat().st_mtime_ns == before
    assert len(lines) == 2
    assert lines[1].endswith("done already")


def test_single_steps(finished: nd.FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    assert nd.execute(finished.config, "prepare", progress=lines.append) == []
    assert nd.execute(finished.config, "predict", progress=lines.append) == [finished.source("predict")]
    assert any("nothing to do" in line for line in lines)
    nd.execute(finished.config, "predict", progress=None)
    assert capsys.readouterr().out == ""


def test_mistakes_before_anything_is_run(finished: nd.FinishedRun, tmp_path: Path) -> None:
    cfg = finished.config
    with pytest.raises(nd.UserError, match=r"unknown verb 'trian'. Did you mean 'train'"):
        nd.execute(cfg, "trian")
    with pytest.raises(nd.UserError, match=r"changed after it was composed.*nd.compose\('experiment=scenes'"):
        nd.execute(replace(cfg, seed=7))
    with pytest.raises(nd.UserError, match=r"Did you mean 'guidance.kappa'"):
        nd.compose("guidance.kapa=1")
    with pytest.raises(nd.UserError, match=r"unknown table 'demmo'. Did you mean 'demo'"):
        nd.compose("experiment=scenes", "table=demmo")


def test_fields_that_only_the_rows_of_a_table_have_are_composed_as_on_the_command_line(tmp_path: Path) -> None:
    raw, table = tmp_path / "digits.mat", tmp_path / "digits.yaml"
    raw.touch()
    rows = "rows: [{label: floor, overrides: [method=mean_image]}]\n"
    table.write_text(f"title: T\nexperiment: digits69\nsubjects: [subj01]\n{rows}", encoding="utf-8")
    digits = (f"table={table}", f"data.file={raw}", f"paths.root={tmp_path}")
    cfg = nd.compose(*digits)
    assert (cfg.data.name, cfg.overrides) == ("scenes", list(digits))
    with pytest.raises(nd.UserError, match="is not a readable MATLAB 5 file"):
        nd.execute(cfg, progress=None)  # and so goes as far as to read it
    unknown = r"data\.file: unknown key here: it belongs to data\.source=digits69"
    with pytest.raises(nd.UserError, match=unknown):
        nd.execute(cfg, "prepare")  # which works on no row
    with pytest.raises(nd.UserError, match=unknown):
        nd.compose("table=", f"data.file={raw}")
    with pytest.raises(nd.UserError, match=r"method\.weights: unknown key here.*ic_gan"):
        nd.compose(*digits, "method.weights=x")  # beside one that the row has


def test_rows_that_fail_do_not_hide(finished: nd.FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import nd.run

    monkeypatch.setattr(nd.run, "run_rows", lambda *_, **__: {"row": "train x: no"})
    with pytest.raises(StepFailed, match="row failed at train x: no"):
        nd.execute(finished.config, progress=None)
    assert read_json(finished.path / "manifest.json")["verb"] == "evaluate"
