"""`nd tune`: settings chosen by the scores of validation images; test images take no part.

Fields with several values (`guidance.eta=0.1,0.2,0.4`) or an interval (`'guidance.kappa=tag(log,interval(1e4,1e6))'`,
`'method.steps=int(interval(10,40))'`) are searched, `tune.trials` settings in all. Each is run with `part=val` and
`mapper.refit=false`; the best has the largest sum of mean scores (`tune.scores`, those where less is better counting
negative): PixCorr, SSIM and two-way identification at three levels, or where a protocol has no feature levels PixCorr
and identification by pixels. The same command goes on where it was stopped; with more trials it continues the study.

Writes results/tune-<id>.json (every trial, what was chosen, the command that uses it), .png (the search, and what each
field did) and .db, the study itself, which Optuna's own tools read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nd.config import Config
from nd.config.application import read_command
from nd.config.conf_files import search_path
from nd.config.sweeps import set_up_logging
from nd.config.words import verb_of_command
from nd.errors import UserError
from nd.files import atomic_path, write_json
from nd.sweeps.tuning import MEANS, RUN, VALUES, Swept, completed, described, opened, search, space_of, study_id
from nd.tables.loggers import check_logger

if TYPE_CHECKING:
    from optuna import Study

# What keeps test images out, and what says how to tune: no part of the settings that are chosen.
OWN = ("part", "mapper.refit", "table", "tune.trials", "tune.scores")
# Which of them a user may type only as they are, and why.
FIXED = {
    "part": ("val", "settings are chosen on validation images; test images may only judge them later."),
    "table": ("", "one configuration is tuned, not a table; give the overrides of one of its rows instead."),
    "mapper.refit": ("false", "validation images cannot judge what is fitted again on them; leave it out."),
}


def tune(words: list[str]) -> int:
    """Choose settings; returns the exit code."""
    command = read_command("tune", [*words, *validation(words)])
    single = command.reading.single()
    space, first = space_of(words, command.reading), command.compose(single)
    check_logger(first)
    set_up_logging(command.reading.hydra)
    stem = Path(first.paths.results) / f"tune-{study_id(first, space)}"
    shared = [text for text in single if text.partition("=")[0] not in {one.key for one in space}]

    def composed(values: Mapping[str, str]) -> Config:
        return command.compose([*shared, *(f"{key}={value}" for key, value in values.items())])  # as typed

    with opened(stem.with_suffix(".db"), first.seed) as study:
        n_failed = search(study, space, composed, first.tune.trials, print)
        record = recorded(study, first, [*shared, *search_path(command.reading.hydra)])
        write_json(stem.with_suffix(".json"), record)
        draw(study, space, stem.with_suffix(".png"))
    best = record["trials"][0]
    print(f"\nbest of {len(record['trials'])} settings, by {first.part} images alone: {described(best['values'])}")
    print(f"{best['value']:.4f}: {described({name: f'{mean:.3f}' for name, mean in best['means'].items()})}")
    print(f"use it: {record['command']}")
    for suffix in (".json", ".png", ".db"):
        print(f"wrote {stem.with_suffix(suffix)}")
    if n_failed:
        print(f"{n_failed} settings failed. The same command tries them again.")
    return 1 if n_failed else 0


def validation(words: Sequence[str]) -> list[str]:
    """Return the overrides that let validation images judge, and nothing be fitted on them.

    Raises:
        UserError: something else was asked for.
    """
    last = {word.lstrip("+").partition("=")[0]: word for word in words}  # what Hydra takes of one given twice
    for key, (wanted, why) in FIXED.items():
        if key in last and last[key].partition("=")[2] != wanted:
            raise UserError(f"{last[key]}: {why}")
    given = [word for word in words if not word.startswith("part=")]
    command = read_command("tune", [*given, "table="])
    refits = any(hasattr(mapper, "refit") for mapper in command.compose(command.reading.single()).mappers)
    return ["table=", "part=val", *(["mapper.refit=false"] if refits else [])]


def recorded(study: Study, cfg: Config, shared: Sequence[str]) -> dict[str, Any]:
    """Return what is written of a study of one trial or more: every setting once, the best first, and how to use it."""
    unique = {one.user_attrs[RUN]: one for one in completed(study)}
    trials = sorted(unique.values(), key=lambda one: -(one.value or 0.0))
    words = [text for text in shared if text.partition("=")[0] not in OWN]
    words += [f"{key}={value}" for key, value in trials[0].user_attrs[VALUES].items()]
    return {
        "part": cfg.part,
        "protocol": f"{cfg.protocol.name} v{cfg.protocol.version}",
        "simulated": cfg.data.simulated,
        "debug": cfg.debug.name,
        "command": shlex.join(["nd", "run", *words]),
        "trials": [
            {
                "values": one.user_attrs[VALUES],
                "value": one.value,
                "means": one.user_attrs[MEANS],
                "run": one.user_attrs[RUN],
            }
            for one in trials
        ],
    }


def draw(study: Study, space: Sequence[Swept], path: Path) -> None:
    """Draw the value of every trial: in their order with the best so far, and against each field."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nd.tables.sweep_plots import STYLE

    trials = completed(study)
    values = [trial.value or 0.0 for trial in trials]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.2 * (1 + len(space)), 3.2), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(space), squeeze=False, sharey=True)[0]
        first.plot(values, "o", markersize=4)
        first.plot([max(values[: k + 1]) for k in range(len(values))], "-", label="best so far")
        first.set(xlabel="trial", ylabel="sum of scores, validation images")
        first.legend(frameon=False, fontsize=7)
        for axis, one in zip(others, space, strict=True):
            axis.plot([trial.params[one.key] for trial in trials], values, "o", markersize=4)
            axis.set(xlabel=one.key, xscale="log" if one.log else axis.get_xscale())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


main = verb_of_command(tune)

if __name__ == "__main__":
    main(None)
