"""Command lines as a user types them: one clear message, exit code 2, nothing written; help and sweeps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers_commands import ROOT, Done, apart, nd, program

from nd.config.help import verb_help
from nd.config.known import known_fields
from nd.config.overrides import group_names
from nd.verbs import VERBS

PROBE = '''
"""A verb for tests."""
import sys
from nd.config.application import verb
from nd.errors import UserError
from nd.config import Config


def probe(cfg: Config) -> int | None:
    """Does what the seed says."""
    print("ran", cfg.seed, cfg.subject.name, sys.argv[1:])
    if cfg.seed == 7:
        raise UserError("seven is not wanted")
    if cfg.seed == 8:
        raise KeyboardInterrupt
    if cfg.seed == 9:
        raise ZeroDivisionError
    return 1 if cfg.seed == 6 else None


main = verb(probe)
if __name__ == "__main__":
    main()
'''


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def probe(tmp_path: Path) -> str:
    script = tmp_path / "probe.py"
    script.write_text(PROBE, encoding="utf-8")
    return str(script)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train", "mapper.alhpa=3"], "nd train: mapper.alhpa: unknown key. Did you mean 'mapper.alphas'?"),
        (["run", "+guidance.kapa=3"], "nd run: guidance.kapa: unknown key. Did you mean 'guidance.kappa'?"),
        (["run", "subject=subj09"], "nd run: subject: subj09 is not a subject of scenes. Did you mean"),
        (["prepare", "data=digits69", "data.file=/nope"], "nd prepare: data.file: /nope does not exist."),
        (["run", "-m", "seed=1,x"], "nd run: seed: 'x' is text, wanted a whole number."),
        (["trian"], "nd: unknown verb 'trian'. Did you mean 'train'? Verbs: prepare, extract"),
        (["run", "--config-name", "mine"], "add a folder with --config-dir"),
        (["run", "-m", "seed=1,2", "hydra/launcher=joblibb"], "Could not find 'hydra/launcher/joblibb'"),
        (["run", "-m", "seed=1,2", "hydra.lancher=x"], "nd run: Could not override 'hydra.lancher'."),
        (["run", "-m", "seed=1,2", "--cfg", "job"], "nd run: --multirun and --cfg do not go together."),
        (["run", "--info", "--cfg=job"], "nd run: --cfg and --info do not go together."),
        (["run", "--resolve"], "nd run: --resolve and --package say how --cfg prints: give --cfg job with them."),
        (["run", "--experimental-rerun=x.pickle"], "nd run: --config-name, --config-path and --experimental-rerun are"),
        (["sweep", "seed=1,2", "--cfg", "job"], "nd sweep: --cfg=job: nd sweep does many runs and takes no flags but"),
        (["tune", "seed=1,2", "--cfg=job"], "nd tune: --cfg=job: nd tune does many runs and takes no flags but"),
    ],
)
def test_a_mistake_is_one_message_with_code_2_and_writes_nothing(words: list[str], wanted: str, empty: Path) -> None:
    done = nd(*words, cwd=empty)
    assert done.code == 2
    assert wanted in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert written(empty) == []


@pytest.mark.slow
def test_the_module_of_a_verb_is_the_same_command(empty: Path) -> None:
    done = apart("mapper.alhpa=3", cwd=empty, program=("-m", "nd.doctor"))
    assert done.returncode == 2
    assert done.stderr.startswith("nd doctor: mapper.alhpa: unknown key.")


@pytest.mark.parametrize(
    ("seed", "code", "wanted"),
    [
        (5, 0, ""),
        (8, 130, "nd probe: interrupted. The same command again resumes.\n"),
        (9, 1, "ZeroDivisionError\n"),
    ],
)
def test_exit_codes(seed: int, code: int, wanted: str, probe: str, empty: Path) -> None:
    done = apart(f"+seed={seed}", cwd=empty, program=(probe,))
    assert done.returncode == code
    assert done.stderr.endswith(wanted)
    assert ("Traceback" in done.stderr) == (seed == 9)
    assert done.stdout == f"ran {seed} subj01 ['+seed={seed}']\n"  # the verb sees the command line as it was given
    assert written(empty) == []


def test_exit_codes_of_a_verb_that_ends_by_itself(probe: str, empty: Path) -> None:
    assert program(probe, "seed=6", cwd=empty) == Done(1, "ran 6 subj01 ['seed=6']\n", "")
    refused = program(probe, "seed=7", cwd=empty)
    assert (refused.code, refused.err) == (2, "nd probe: seven is not wanted\n")
    assert written(empty) == []


def test_a_sweep_runs_every_job_and_tells_of_the_one_that_failed(probe: str, empty: Path) -> None:
    done = program(probe, "seed=7,1", "-m", "subject=subj01,subj02", cwd=empty)
    jobs = [line.split(" [")[0] for line in done.out.splitlines() if line.startswith("ran")]
    assert jobs == ["ran 7 subj01", "ran 7 subj02", "ran 1 subj01", "ran 1 subj02"]
    assert done.code == 2
    assert "job 0 (seed=7 subject=subj01): seven is not wanted" in done.err
    assert written(empty) in ([], ["runs"])  # Hydra's own folder goes where no job has written into it
    given = ["hydra.sweep.dir=logs", "paths.root=other"]
    assert program(probe, "seed=1,2", "-m", *given, cwd=empty).code == 0
    assert (empty / "logs" / "multirun.yaml").is_file()


def test_cfg_job_prints_the_configuration_and_runs_nothing(probe: str, empty: Path) -> None:
    done = program(probe, "guidance.kappa=5", "--cfg", "job", cwd=empty)
    assert done.code == 0
    assert "kappa: 5" in done.out
    assert not any(line.startswith("ran") for line in done.out.splitlines())
    assert written(empty) == []
    assert program(probe, "guidance.kapa=5", "--cfg", "job", cwd=empty).code == 2


def test_a_folder_of_ones_own_joins_conf(probe: str, tmp_path: Path, empty: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    mine = tmp_path / "own" / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nsubject:\n  name: subj03\nseed: 11\n", encoding="utf-8")
    done = program(probe, "--config-dir", str(tmp_path / "own"), "experiment=mine", cwd=empty)
    assert done.code == 0, done.err
    assert done.out.startswith("ran 11 subj03")
    alone = program(probe, "experiment=mine", cwd=empty)
    assert "Options of experiment: digits69, mindeye2, nsd, scenes." in alone.err


def test_a_sweep_is_asked_for_by_flag_or_override_and_by_no_file(probe: str, tmp_path: Path, empty: Path) -> None:
    done = program(probe, "seed=1,2", "hydra.mode=MULTIRUN", cwd=empty)
    assert done.code == 0, done.err
    assert [line[:5] for line in done.out.splitlines() if line.startswith("ran")] == ["ran 1", "ran 2"]
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    done = nd("train", "--config-dir", str(tmp_path / "own"), "experiment=mine", cwd=empty)
    assert (done.code, "conf: a file sets hydra.mode=MULTIRUN; take it out. A sweep is run by -m." in done.err) == (
        2,
        True,
    )


def test_help_explains_every_verb_group_and_field_and_is_quick(empty: Path) -> None:
    begun = time.monotonic()
    overview = apart("--help", cwd=empty)
    seconds = time.monotonic() - begun
    assert overview.returncode == 0
    assert all(f"\n  {name} " in overview.stdout for name in VERBS)
    assert seconds < 15  # 0.3 s on an idle machine
    text = verb_help("train", ["all"])
    assert all(f"\n  {group} " in text for group in group_names([ROOT / "conf"]))
    assert all(f" {name}=" in text for name, known in known_fields().items() if not known.owners)
    assert "[none | shuffled_voxels | shuffled_labels]" in text.replace("\n" + " " * 42, " ")
    assert "data.name=digits69" in verb_help("train", ["experiment=digits69"])


def test_help_and_the_check_import_nothing_heavy(empty: Path) -> None:
    heavy = ["torch", "diffusers", "transformers", "open_clip", "matplotlib", "pytorch_lightning", "scipy"]
    code = (
        "import sys; from nd.cli import main; from nd.config.application import check;"
        "from nd.config.help import verb_help;"
        f"check('run', ['seed=1']); verb_help('run'); print([name for name in {heavy} if name in sys.modules])"
    )
    assert apart(code, cwd=empty, program=("-c",)).stdout == "[]\n"
    code = (
        "import sys; import nd.cli; nd.cli.overview();"
        "print([name for name in ('hydra', 'numpy', 'yaml', 'nd.config') if name in sys.modules])"
    )
    assert apart(code, cwd=empty, program=("-c",)).stdout == "[]\n"


def test_version_and_no_verb(empty: Path) -> None:
    from nd import __version__

    assert nd("--version", cwd=empty).out == f"nd {__version__}\n"
    assert nd("run", "--version", cwd=empty).out == f"nd {__version__}\n"
    bare = nd(cwd=empty)
    assert bare.code == 2
    assert "usage" in bare.out


def test_doctor_says_what_is_missing_and_writes_nothing(empty: Path) -> None:
    done = nd("doctor", "experiment=digits69", "table=", cwd=empty)
    assert done.code == 1
    assert "MISSING raw file" in done.out
    assert "missing: prepared data, raw file" in done.out.splitlines()[-1]
    assert "Neural Computation" in done.out
    assert "trainer.memory_gb" in done.out
    assert written(empty) == []
