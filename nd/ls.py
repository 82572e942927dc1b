"""`nd ls`: the runs there are, with what sets them apart, their state, main scores, size and age; nothing is written.

Words without `=` are verbs (train, predict, reconstruct, evaluate); of none, all are listed. `key=value` keeps the
runs that have that value: `method=takagi guidance.kappa=0.5 subject=subj01,subj02`. `*` stands for anything, and
`state=` is one of done, running, partial, failed, 'other version' and damaged. `scores=pixcorr,ssim` chooses scores.
Shown are the keys in which runs of one name differ, and those that were typed; what all share is said once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from nd.config.words import Words, verb_of_words
from nd.doctor.need import byte_text
from nd.errors import unknown
from nd.runs.catalogue import MAIN_SCORES, KnownRun, age, apart, filtered, known_runs, scores_of
from nd.runs.identity import VERBS

SHOWN_WORDS = 6  # of what sets a run apart


def ls(words: Words) -> int:
    """List the runs that the words leave; returns the exit code."""
    for name in words.bare:
        if name not in VERBS:
            raise unknown("verb with run folders", name, VERBS)
    wanted = {key: value for key, value in words.options.items() if key != "scores"}
    there = known_runs(Path(words.paths.runs), words.bare or VERBS)
    runs = filtered(there, wanted)
    said = apart(runs)
    shared = [word for word in next(iter(said.values()), []) if all(word in own for own in said.values())]
    shared = shared if len(runs) > 1 else []
    said = {path: [word for word in own if word not in shared] for path, own in said.items()}
    chosen = words.options.get("scores", "")
    grouped = {verb: [run for run in runs if run.verb == verb] for verb in VERBS}
    listed = {verb: f"{_total(of)}\n{_listed(of, said, chosen)}" for verb, of in grouped.items() if of}
    for verb, text in listed.items():  # nothing is shown before all that was asked for is known
        print(f"{verb}: {text}\n")
    kept, common = f"{len(runs)} of " if wanted else "", f"; all with {' '.join(shared)}" if shared else ""
    print(f"{kept}{_total(there)} in {words.paths.runs}{common}")
    return 0


def _total(runs: Sequence[KnownRun]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {byte_text(sum(run.n_bytes for run in runs))}"


def _listed(runs: Sequence[KnownRun], said: dict[Path, list[str]], chosen: str) -> str:
    """Return the runs of one verb as a table; columns that would be empty are left out."""
    scores = {run.path: scores_of(run) for run in runs}
    names = _columns({name for found in scores.values() for name in found}, chosen)
    lines = [
        {
            "id": run.id, "name": run.name, "set apart by": _short(said[run.path]), "state": run.state,
            **{name: f"{scores[run.path][name]:.3f}" if name in scores[run.path] else "" for name in names},
            "size": byte_text(run.n_bytes), "age": age(run.changed),
        }
        for run in runs
    ]  # fmt: skip
    kept = [name for name in lines[0] if any(line[name] for line in lines)]
    right = (*names, "size", "age")
    table = [[line[name] for name in kept] for line in lines]
    align = ["right" if name in right else "left" for name in kept]
    return tabulate(table, headers=kept, tablefmt="simple", disable_numparse=True, colalign=align)


def _columns(there: set[str], chosen: str) -> list[str]:
    if not chosen or not there:  # verbs without scores have nothing to choose from
        return [name for name in MAIN_SCORES if name in there]
    for name in chosen.split(","):
        if name not in there:
            raise unknown("score", name, there)
    return chosen.split(",")


def _short(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
    return " ".join(words[:SHOWN_WORDS]) + more


main = verb_of_words(ls, None)

if __name__ == "__main__":
    main(None)
