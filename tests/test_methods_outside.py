"""A method as one file of somebody's own folder: what is wrong with it is told, and tables find it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_commands import nd, succeed

GOOD = "name: vae_early\ngenerator: vae\ntargets:\n  z: {roi: early, mapper: {name: ridge, alpha_per: column}}\n"
SPEC = """
title: Mine
experiment: scenes
subjects: [subj01]
rows:
  - {label: early alone, overrides: [method=vae_early]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "vae_early.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(SPEC, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("flag", [["--config-dir", "my_conf"], ["--config-dir=my_conf"]])
def test_a_table_of_ones_own_finds_a_method_of_ones_own(flag: list[str], folder: Path) -> None:
    done = succeed("sweep", *flag, "mine.yaml", "dry_run=true", cwd=folder)
    assert "early alone (subj01)" in done.out
    assert "1 points, 1 runs: 1 missing" in done.out


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("{roi: early, maper: ridge}", "method.targets.z.maper: unknown key. A target of a method holds roi, target,"),
        ("{roi: early, mapper: rigde}", "mapper=rigde: unknown option. Did you mean 'ridge'?"),
        ("{roi: early, mapper: {name: rigde}}", "'rigde'"),
        ("{roi: early, mapper: {name: ridge, alfa_per: column}}", "Did you mean"),
        ("[early]", "method.targets.z: ['early'] was given, wanted a mapping of roi, mapper"),
        ("ridge", "method.targets.z: 'ridge' was given, wanted a mapping of roi, mapper"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told(recipe: str, wanted: str, folder: Path) -> None:
    bad = GOOD.replace("vae_early", "bad").split("  z:")[0] + f"  z: {recipe}\n"
    (folder / "my_conf" / "method" / "bad.yaml").write_text(bad, encoding="utf-8")
    done = nd("run", "--config-dir=my_conf", "experiment=scenes", "table=", "method=bad", cwd=folder)
    assert done.code == 2
    assert wanted in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "my_conf"]


def test_a_table_that_lies_here_is_pointed_at(folder: Path) -> None:
    done = nd("sweep", "mine", "dry_run=true", cwd=folder)
    assert done.code == 2
    assert "For the file that lies here give table=mine.yaml." in done.err
