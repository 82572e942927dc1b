"""Rules about the repository itself: imports point one way, nothing machine-specific, everything has a header."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# A package may import from itself and from anything to its left, never from the right.
ORDER = [
    {
        "nd",
        "nd.errors",
        "nd.verbs",
        "nd.digests",
        "nd.files",
        "nd.locks",
        "nd.machine",
        "nd.progress",
        "nd.terminal",
        "nd.threads",
    },
    {"nd.hdf5_texts", "nd.hdf5", "nd.sealed", "nd.h5_values"},
    {"nd.config", "nd.launch", "nd.lightning", "nd.processes"},
    {"nd.data"},
    {"nd.scenes"},
    {"nd.backbone"},
    {"nd.targets"},
    {"nd.mappers"},
    {"nd.generate"},
    {"nd.metrics"},
    {"nd.runs"},
    {"nd.evaluation"},
    {"nd.tables"},
    {"nd.doctor"},
    {
        f"nd.{v}"
        for v in ["prepare", "extract", "train", "predict", "reconstruct", "evaluate", "run", "table", "report", "roi"]
    },
    {"nd.interface", "nd.sweeps"},
    {"nd.ls", "nd.show", "nd.clean", "nd.log", "nd.completion", "nd.sweep", "nd.tune"},
    {"nd.cli", "nd.__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def room_of(module: str) -> str:
    """Name the package (or top-level module) of ``nd`` a dotted module name belongs to."""
    return ".".join(module.split(".")[:2])


def imports_of(source: str) -> list[str]:
    """List every ``nd`` module a source text imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"nd.{alias.name}" for alias in node.names] if node.module == "nd" else [node.module]
    return [name for name in found if name == "nd" or name.startswith("nd.")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def backward_imports(name: str, source: str) -> list[str]:
    """List the imports of a module that point to the right of its own place."""
    own = RANK[room_of(name)]
    targets = [room_of(t) if room_of(t) in RANK else "nd" for t in imports_of(source)]
    return [f"{name} imports {t}" for t in targets if RANK[t] > own]


SOURCES = sorted((ROOT / "nd").rglob("*.py"))


def test_every_module_has_a_place_in_the_order() -> None:
    assert [m for m in map(module_name, SOURCES) if room_of(m) not in RANK] == []


def test_imports_point_one_way() -> None:
    inside = [path for path in SOURCES if module_name(path) != "nd"]  # which names the public interface, for readers
    wrong = [w for path in inside for w in backward_imports(module_name(path), path.read_text(encoding="utf-8"))]
    assert wrong == []


def test_the_import_rule_can_fail() -> None:
    assert backward_imports("nd.data.trials", "from nd.generate.trajectories import noise_for") == [
        "nd.data.trials imports nd.generate"
    ]
    assert backward_imports("nd.metrics.pixel", "def f():\n    import nd.tables.table") == [
        "nd.metrics.pixel imports nd.tables"
    ]
    assert backward_imports("nd.targets.store", "from nd.data import splits") == []


def tracked(*patterns: str) -> list[Path]:
    """List the files git tracks, or skip with the reason outside a checkout."""
    got = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True)
    if got.returncode:
        pytest.skip("not a git checkout: tracked files cannot be listed")
    return [ROOT / line for line in got.stdout.splitlines() if (ROOT / line).exists()]


def test_no_machine_paths() -> None:
    home = re.compile(r"(?<![\w.])/(home|Users|root|work|tmp)/\w")
    wrong = []
    for path in tracked("*.py", "*.yaml", "*.toml", "*.md", "*.json", "Makefile"):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        wrong += [f"{path.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in lines if home.search(line)]
    assert [line for line in wrong if not line.startswith("tests/test_repository.py")] == []


def without_encoding(source: str) -> list[int]:
    """List the lines that read or write text in whatever encoding the machine happens to have."""
    n_calls = lambda line: sum(line.count(f"{method}(") for method in TEXT_METHODS)  # noqa: E731
    if all(n_calls(line) <= line.count("encoding=") for line in source.splitlines()):  # as nearly everywhere
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT_METHODS]
    return [call.lineno for call in named if "encoding" not in {keyword.arg for keyword in call.keywords}]


TEXT_METHODS = {"read_text", "write_text"}


def test_text_is_read_and_written_as_utf8() -> None:
    found = {str(p.relative_to(ROOT)): without_encoding(p.read_text(encoding="utf-8")) for p in tracked("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert without_encoding("p.read_text()") == [1]
    assert without_encoding("p.write_text(q.read_text(), encoding='utf-8')") == [1]
    assert without_encoding("a = 1\np.write_text(\n    a, encoding='utf-8'\n)\np.write_text(\n    a\n)") == [5]


def test_paths_of_users_are_read_in_one_place() -> None:
    """`Path.expanduser` raises where nobody has the name after `~`; `nd.files.located` leaves such a path as it is."""
    assert [str(path) for path in tracked("nd/*.py") if ").expanduser()" in path.read_text(encoding="utf-8")] == []


def test_weights_are_never_unpickled() -> None:
    for path in tracked("*.py"):
        if path == Path(__file__):
            continue
        for call in re.findall(r"torch\.load\([^\n]*", path.read_text(encoding="utf-8")):
            assert "weights_only=True" in call, f"{path.relative_to(ROOT)}: {call}"


def test_every_conf_and_table_file_says_what_it_is() -> None:
    files = tracked("conf/*.yaml", "experiments/*.yaml")
    assert files
    assert [str(p.relative_to(ROOT)) for p in files if not p.read_text(encoding="utf-8").startswith("#")] == []


def test_shipped_weights_stay_small() -> None:
    weights = [p for p in (ROOT / "nd" / "weights").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in weights) <= 40e6
    assert sum(p.stat().st_size for p in weights if p.is_relative_to(ROOT / "nd" / "weights" / "scenes")) <= 18e6
    assert not [p for p in weights if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def test_modules_and_functions_stay_readable() -> None:
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 300:
            long.append(f"{module_name(path)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno > 60:
                long.append(f"{module_name(path)}.{node.name}: {node.end_lineno - node.lineno} lines")
    assert long == []


def test_chosen_faults_fit_the_code() -> None:
    """What `make faults` exchanges is there, once; a line that was moved is one that no fault is put in."""
    code = "import sys; sys.path[:0] = ['tests', 'tests/faults']; import mutate; print(mutate.stale(mutate.MUTATIONS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_tested_versions_lie_within_the_declared_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in tested.items()}
    texts = project["dependencies"] + [t for name in ("dev", "docs") for t in project["optional-dependencies"][name]]
    wanted = [Requirement(text) for text in texts]
    assert [str(r) for r in wanted if pins[canonicalize_name(r.name)] not in r.specifier] == []
