"""Wheel and source archive hold all that the package reads, and what is installed runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOVED = {"conf": "nd/_conf", "experiments": "nd/_experiments"}  # as the wheel has them
ELSEWHERE = "größe test"  # a folder with a space and an accent
NEVER = ("__pycache__", ".venv", "results", "runs", "debug-runs", "shared")  # folders of the checkout


def tracked(*folders: str) -> list[str]:
    """List the files git tracks in some folders, or skip with the reason outside a checkout."""
    got = subprocess.run(
        ["git", "-c", "core.quotepath=off", "ls-files", "--", *folders], cwd=ROOT, capture_output=True, text=True
    )
    if got.returncode:
        pytest.skip("not a git checkout: tracked files cannot be listed")
    return [line for line in got.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and a source archive, built from the checkout."""
    pytest.importorskip("hatchling", reason="building needs hatchling: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder with a space and an accent, as an installation would lay them."""
    folder = tmp_path_factory.mktemp("unpacked") / ELSEWHERE / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def in_wheel(path: str) -> str:
    first, _, rest = path.partition("/")
    return f"{MOVED.get(first, first)}/{rest}"


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_configuration_its_tables_and_its_weights(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    wanted = {in_wheel(path) for path in tracked("nd", "conf", "experiments")}
    assert any(path.endswith(".safetensors") for path in wanted)
    assert sorted(wanted - held) == []
    others = {path for path in held - wanted if ".dist-info/" not in path}
    assert sorted(others) == [], "files that nobody committed"


@pytest.mark.slow
def test_the_source_archive_holds_what_builds_and_tests_it(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = set(tracked("nd", "conf", "experiments", "tests", "docs", "Makefile", "pyproject.toml", "constraints.txt"))
    assert sorted(wanted - held) == []
    assert [name for name in held if name.partition("/")[0] in NEVER or name.endswith(".pyc")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("run", "experiment=scenes", "debug=fast", "--cfg", "job"),
        ("table", "experiment=scenes", "--cfg", "job"),
        ("doctor", "experiment=scenes"),
    ],
    ids=" ".join,
)
def test_what_is_installed_runs_from_any_folder(unpacked: Path, words: tuple[str, ...]) -> None:
    work = unpacked.parent / "work"
    work.mkdir(exist_ok=True)
    # Of some other package, beside the installed one: its files are not ours.
    foreign = unpacked / "experiments"
    foreign.mkdir(exist_ok=True)
    (foreign / "demo.yaml").write_text("title: not ours\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", f"import nd.cli; print(nd.cli.__file__); nd.cli.main({list(words)!r})"],
        cwd=work, env=os.environ | {"PYTHONPATH": str(unpacked)}, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(unpacked), "the checkout answered instead"
    assert str(ROOT) not in done.stdout


def test_supported_versions_of_python_are_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert project["requires-python"] == f">={said[0]}"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in said
