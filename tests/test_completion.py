"""Shell completion: what each shell itself makes of the script that `nd completion` prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers_commands import nd, succeed

from nd.completion import SHELLS, keys, script, values
from nd.config.help import MATTERS
from nd.config.known import known_fields
from nd.config.overrides import group_names
from nd.verbs import VERBS

RUN = "scenes-subj01-z-ridge-0123456789ab"
# As bash calls a completion function: the line up to the cursor, and the words as COMP_WORDBREAKS parts them.
ASKED = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDBREAKS=$3
COMP_WORDS=($2) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_nd nd
printf '%s\n' "${COMPREPLY[@]}"
"""
BREAKS = " \t\n\"'><=;|&(:"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts, in a folder with one run."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "runs" / "train" / RUN).mkdir(parents=True)
    found = {shell: folder / f"nd.{shell}" for shell in SHELLS}
    for shell, path in found.items():
        path.write_text(succeed("completion", shell, cwd=folder).out, encoding="utf-8")
    return found


def bash(scripts: dict[str, Path], line: str, breaks: str = BREAKS) -> list[str]:
    """What bash would offer for the last word of a line."""
    command = ["bash", "--norc", "-c", ASKED, "bash", str(scripts["bash"]), line, breaks]
    done = subprocess.run(command, cwd=scripts["bash"].parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_takes_the_script(scripts: dict[str, Path]) -> None:
    command = ["bash", "--norc", "-c", f"source {scripts['bash']}; complete -p nd"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o bashdefault -o default -F _nd nd\n"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nd ", [*VERBS, "--help", "--version"]),
        ("nd eva", ["evaluate"]),
        ("nd run guidan", ["guidance=", "guidance."]),
        ("nd run guidance.sch", ["guidance.schedule="]),
        ("nd run guidance.schedule=", ["constant", "falling", "rising"]),
        ("nd run method=taka", ["takagi", "takagi_released"]),
        ("nd run -m method=vae,taka", ["vae,takagi", "vae,takagi_released"]),
        ("nd run data.source=n", ["nsd"]),
        ("nd train mapper=rid", ["ridge"]),
        ("nd train target=z4", ["z40"]),
        ("nd run trainer.progress=", ["true", "false"]),
        ("nd run experiment=dig", ["digits69"]),
        ("nd table table=scenes_b", ["scenes_brain", "scenes_brain_diffuser_ablation"]),
        ("nd run control=shuffled_v", ["shuffled_voxels"]),
        ("nd run subject=subj01 see", ["seed="]),
        ("nd run --conf", ["--config-dir"]),
        ("nd run --cfg ", ["job", "hydra", "all"]),
        ("nd train --help netw", ["network"]),
        ("nd completion z", ["zsh"]),
        ("nd ls eva", ["evaluate"]),
        ("nd ls state=pa", ["partial"]),
        ("nd clean ", ["apply=true", "paths.root="]),
        ("nd show scenes-", [RUN]),
        ("nd log runs=scenes-", [RUN]),
        ("nd log logger=ten", ["tensorboard"]),
        ("nd log logger.mo", ["logger.mode="]),
        ("nd run paths.root=some", []),  # then bash completes files
        ("nd run nonsense", []),
    ],
)
def test_bash_completes(line: str, wanted: list[str], scripts: dict[str, Path]) -> None:
    assert bash(scripts, line) == wanted


def test_where_the_equals_sign_does_not_part_words_the_whole_word_is_offered(scripts: dict[str, Path]) -> None:
    assert bash(scripts, "nd run method=taka", " \t\n") == ["method=takagi", "method=takagi_released"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nd eva", ["evaluate"]),
        ("nd run method=taka", ["method=takagi", "method=takagi_released"]),
        ("nd run -m method=vae,takagi_", ["method=vae,takagi_released"]),
        ("nd run guidance.sch", ["guidance.schedule="]),
        ("nd train --help netw", ["network"]),
        ("nd show scenes-", [RUN]),
        ("nd log runs=scenes-", [f"runs={RUN}"]),
    ],
)
def test_fish_completes(line: str, wanted: list[str], scripts: dict[str, Path]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    command = ["fish", "--no-config", "-c", f"source {scripts['fish']}; complete -C '{line}'"]
    done = subprocess.run(command, cwd=scripts["fish"].parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == wanted


def test_zsh_takes_the_script(scripts: dict[str, Path]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    command = ["zsh", "-f", "-c", f"compdef() {{ echo $* }}; source {scripts['zsh']}; _nd_values logger.mode"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "_nd nd\noffline online disabled\n"


def test_everything_that_can_be_typed_is_in_it(scripts: dict[str, Path]) -> None:
    from nd.config.conf_files import search_folders

    groups = group_names(search_folders())
    listed = {key for words in keys().values() for key in words}
    assert {f"{group}=" for group in groups} <= listed
    missing = {key for key in known_fields() if f"{key}=" not in listed}
    assert missing == {key for key in known_fields() if key.endswith(".name") and key.partition(".")[0] in groups}
    assert "mindeye2" in values()["protocol"]
    for shell, path in scripts.items():
        text = path.read_text(encoding="utf-8")
        assert text == f"{script(shell)}\n"
        assert all(verb in text for verb in (*VERBS, *MATTERS))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "nd completion: for which shell? nd completion bash | zsh | fish"),
        (["bsh"], "unknown shell 'bsh'. Did you mean 'bash'?"),
        (["bash", "zsh"], "for which shell?"),
        (["shell=bash"], "unknown option 'shell'."),
    ],
)
def test_a_wrong_word_is_one_message(words: list[str], wanted: str, tmp_path: Path) -> None:
    done = nd("completion", *words, cwd=tmp_path)
    assert done.code == 2
    assert wanted in done.err
