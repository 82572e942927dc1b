"""A package outside nd adds a generator, a target, a mapper and a measure, and nothing in nd is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_commands import succeed

from nd.config import components, composition, known
from nd.config.application import compose
from nd.config.help import verb_help
from nd.errors import UserError
from nd.metrics import measures
from nd.runs.identity import run_id

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example package is installed by pip, as into any environment."""
    source = shutil.copytree(HERE / "plugin", tmp_path_factory.mktemp("source") / "plugin")
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def nd(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "nd", *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )


def given(tmp_path: Path) -> list[str]:
    small = ["data.n_train=120", "data.n_val=16", "data.n_test=16", "data.n_voxels=600", "data.subjects=[subj01]"]
    rest = ["protocol.network=none", "protocol.measures=[brightness]", "trainer.accelerator=cpu", "protocol.n_boot=50"]
    return ["method=tiles", *small, *rest, f"paths.root={tmp_path}"]


@pytest.mark.usefixtures("found_here")
def test_a_method_from_outside_runs_resumes_and_has_its_own_identity(installed: Path, tmp_path: Path) -> None:
    """Run here, where everything is imported already, and gone on with by a process of its own."""
    succeed("run", *given(tmp_path), cwd=tmp_path)
    (scores,) = tmp_path.glob("runs/evaluate/*tiles*/scores.json")
    metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
    assert metrics["pixcorr"]["lo"] > 0, "mean greys are decoded"
    assert 0.5 < metrics["brightness"]["mean"] <= 1
    again = nd(installed, "run", *given(tmp_path))
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


@pytest.fixture
def found_here(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package is found by this process, which forgets it afterwards."""
    monkeypatch.syspath_prepend(str(installed))
    forget()
    yield
    forget()


def forget() -> None:
    for cached in (components.found, known.known_fields, composition.decoded, measures.measures, measures.columns):
        cached.cache_clear()


@pytest.mark.usefixtures("found_here")
def test_every_field_of_a_component_from_outside_is_part_of_the_identity(tmp_path: Path) -> None:
    def ids(*more: str) -> dict[str, str]:
        cfg = compose([*given(tmp_path), *more])
        return {"train": run_id("train", cfg.with_target("grey")), "reconstruct": run_id("reconstruct", cfg)}

    plain = ids()
    assert ids("method.noise=0.5")["train"] == plain["train"], "noise changes no mapper"
    assert ids("method.noise=0.5")["reconstruct"] != plain["reconstruct"]
    for field in ("mapper.strength=5", "target.tiles=8"):
        assert all(ids(field)[verb] != plain[verb] for verb in plain)


@pytest.mark.usefixtures("found_here")
def test_components_from_outside_are_in_help_and_messages(tmp_path: Path) -> None:
    text = verb_help("run", ["method=tiles"])
    assert "tiles: standard deviation of the noise" in text
    assert all(name in text for name in ("shrunk", "grey"))
    with pytest.raises(UserError) as caught:
        compose([*given(tmp_path), "method.noize=1", "target.n_tiles=3", "protocol.measures=[brigtness]"])
    for name in ("method.noise", "target.tiles", "brightness"):
        assert f"Did you mean '{name}'?" in str(caught.value)


def test_a_broken_plug_in_names_itself_and_takes_nothing_down(installed: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(installed, tmp_path / "broken")
    (broken / "nd_plugin" / "__init__.py").write_text("raise RuntimeError('no such licence')\n", encoding="utf-8")
    done = nd(broken, "train", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    said = nd(broken, "run", "method.generator=tiles").stderr
    assert "nd_plugin:COMPONENTS of nd-plugin-example cannot be loaded: RuntimeError: no such licence" in said
    assert "no such licence" in nd(broken, "run", "--help").stdout
