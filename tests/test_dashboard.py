"""The dashboard of W&B: built, checked and sent without W&B, and about keys that `logger=wandb` really fills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_commands import environment
from helpers_scripts import EXPERIMENTS, load_script
from helpers_wandb import KEY, server

from nd.errors import UserError
from nd.mappers.training.callbacks import values_of
from nd.metrics.measures import columns

SCRIPT = "wandb/dashboard.py"
LINE = {
    "epoch": 0, "step": 3, "loss": 1.0, "losses": {"c/tokens": 1.0}, "lr": 0.1, "samples_per_s": 9.0,
    "val": {"c": {"correlation": 0.1, "identification": 0.5, "retrieval": 0.2, "unexplained": 0.9}},
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def spec(script: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("dashboard") / "dashboard.json"
    assert script.main(["entity=me", f"out={path}"]) == 0
    return dict(json.loads(path.read_text(encoding="utf-8"))["section"])


def panels(spec: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for section in spec["panelBankConfig"]["sections"]:
        yield from (panel["config"] for panel in section["panels"] if panel["viewType"] == kind)


def test_its_sections(spec: dict[str, Any]) -> None:
    sections = {one["name"]: one for one in spec["panelBankConfig"]["sections"]}
    assert list(sections) == ["Scores", "Images", "Guidance", "Training", "Tables and sweeps"]
    assert all(one["isOpen"] and one["panels"] for one in sections.values())


def test_scores_and_settings_are_ours(spec: dict[str, Any]) -> None:
    from nd.config.known import known_fields

    scores = [config["metrics"][0] for config in panels(spec, "Bar Chart")]
    assert scores
    assert set(scores) <= columns().keys()
    axes = [config[axis] for config in panels(spec, "Scatter Plot") for axis in ("xAxis", "zAxis")]
    assert {axis.removeprefix("config:").replace(".value.", ".") for axis in axes} <= known_fields().keys()
    assert {config["yAxis"].removeprefix("summary:") for config in panels(spec, "Scatter Plot")} == set(scores)


def test_curves_and_media_are_those_that_are_logged(spec: dict[str, Any]) -> None:
    regexes = [config["metricRegex"] for config in panels(spec, "Run History Line Plot")]
    for prefix in ("", "fold-03/"):
        logged = [f"{prefix}{name}" for name in values_of(LINE)]
        unseen = [name for name in logged if not any(re.fullmatch(regex, name) for regex in regexes)]
        assert {name.removeprefix(prefix) for name in unseen} == {"epoch", "samples_per_s", "val/c/unexplained"}
        assert all(any(re.fullmatch(regex, name) for name in logged) for regex in regexes)
    media = [key for config in panels(spec, "Media Browser") for key in config["mediaKeys"]]
    assert media == ["images", "map"]
    source = (EXPERIMENTS.parent / "nd" / "tables" / "loggers.py").read_text(encoding="utf-8")
    assert all(f'"{key}"' in source for key in (*media, "per_image"))
    tables = json.dumps(list(panels(spec, "Weave")))
    assert all(f'"{name}"' in tables for name in ("per_image", "table", "sweep"))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], r"Give entity=<user or team"),
        (["entity="], r"Give entity=<user or team"),
        (["entiy=me"], r"unknown option 'entiy=me'\. Did you mean 'entity='"),
        (["entity"], r"unknown option 'entity'"),
    ],
)
def test_a_wrong_word_is_one_message(words: list[str], wanted: str, script: Any) -> None:
    with pytest.raises(UserError, match=wanted):
        script.main(words)


def test_without_the_package_the_message_says_what_to_do(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r'pip install "nd\[dashboard\]"'):
        script.main(["entity=me"])


def test_it_is_installed_as_a_view_of_the_project(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENTS / SCRIPT), "entity=me", "project=mine"]
    with server() as taken:
        surroundings = environment() | {"WANDB_BASE_URL": taken.url, "WANDB_API_KEY": KEY}
        done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "installed 'nd: scores, images, sweeps': " in done.stdout
    (view,) = taken.views
    assert (view["entityName"], view["projectName"]) == ("me", "mine")
    assert view["displayName"] == "nd: scores, images, sweeps"
    sent = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sent][:2] == ["Scores", "Images"]


def test_without_a_login_it_is_one_message(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENTS / SCRIPT), "entity=me"]
    surroundings = {key: value for key, value in environment().items() if key != "WANDB_API_KEY"}
    surroundings |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "NETRC": os.devnull}
    done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2
    assert "nd dashboard: W&B did not take the dashboard" in done.stderr
    assert "Traceback" not in done.stderr
