"""Settings chosen by the scores of validation images: Optuna proposes them, the chain of runs scores them.

Every trial is an ordinary run with ``part=val``, found again by its identity; the study is an SQLite file. So an
interrupted study goes on, and settings that were tried in any other way cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep

from nd.config import Config
from nd.config.grammar import parsed
from nd.config.overrides import Reading
from nd.errors import UserError, unknown
from nd.evaluation.scores import RunScores, read_scores
from nd.files import sha256_json, system_errors
from nd.locks import locked
from nd.runs.chain import Chain
from nd.runs.folder import RunFolder
from nd.runs.identity import identity_of
from nd.sweeps.work import Outcome, do, quiet_chain

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

# Fidelity of pixels and identification at three levels count alike; a protocol without these levels chooses by pixels.
USUAL, OF_PIXELS = ("pixcorr", "ssim", "two_way_low", "two_way_mid", "two_way_high"), ("pixcorr", "two_way_pixels")
RUN, MEANS, VALUES = "run", "means", "values"  # what a trial remembers beside its settings
MOST_FAILURES = 3  # at the beginning of a call, before something is taken to be wrong with all
Point = tuple[str, ...]  # a value for every key of a space, as typed


@dataclass(frozen=True)
class Swept:
    """One key whose value is chosen: of the values given, or anywhere between two numbers."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def suggest(self, trial: Trial) -> str:
        """Return the value of a trial, as it would be typed."""
        if self.values:
            return str(trial.suggest_categorical(self.key, self.values))
        if self.whole:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(self.key, self.low, self.high, log=self.log):.6g}"


def space_of(words: Sequence[str], reading: Reading) -> list[Swept]:
    """Return the keys to choose values of, in Hydra's words for sweeps.

    Args:
        words: overrides as given: ``a=1,2``, ``a=range(1,5)``, ``a=interval(0,1)``, ``a=tag(log,interval(1,100))``;
            with ``int(interval(1,9))`` whole numbers.
        reading: the same, read.

    Raises:
        UserError: no key has several values, or an interval cannot be searched.
    """
    listed = {one.key: one.values for one in reading.given if len(one.values) > 1}
    given = [parsed(word) for word in words if _key(word) in listed]
    sweeps = {override.key_or_group: override.value() for override in given}
    found = [_swept(key, sweeps.get(key), values) for key, values in listed.items()]
    if not found:
        raise UserError(
            "nothing to choose: give several values of a field (guidance.eta=0.1,0.2,0.4), or an interval "
            "('guidance.kappa=tag(log,interval(1e4,1e6))')."
        )
    return found


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _swept(key: str, sweep: Any, values: tuple[str, ...]) -> Swept:
    if not isinstance(sweep, IntervalSweep):
        return Swept(key, values)
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if low >= high or (log and low <= 0):
        raise UserError(f"{key}: {low:g} to {high:g} is no interval{' on a logarithmic scale' if log else ''}.")
    return Swept(key, (), low, high, isinstance(low, int) and isinstance(high, int), log)


def chosen_scores(given: Sequence[str], scores: RunScores) -> list[str]:
    """Return the scores that are summed: those given, or the usual ones that the protocol has.

    Raises:
        UserError: the protocol has no such score.
    """
    for name in given:
        if name not in scores.scores:
            raise unknown("score", name, scores.scores)
    usual = USUAL if all(name in scores.scores for name in USUAL) else OF_PIXELS
    return list(given) or [name for name in usual if name in scores.scores]


def value_of(names: Sequence[str], scores: RunScores) -> float:
    """Return the sum of some mean scores; where less is better they count negative."""
    signs = {"higher": 1.0, "lower": -1.0}
    return sum(signs[scores.scores[name].better] * scores.scores[name].mean for name in names)


def study_id(cfg: Config, space: Sequence[Swept]) -> str:
    """Return what names a study: the run of the first values, the space, the scores it goes by, and what trials keep.

    Studies whose trials keep other things are not gone on with. Their runs are found by identity, and cost nothing.
    """
    keeps = [RUN, MEANS, VALUES]
    return sha256_json([identity_of("evaluate", cfg), sorted(map(repr, space)), cfg.tune.scores, cfg.seed, keeps])


@contextmanager
def opened(path: Path, seed: int) -> Iterator[Study]:
    """Yield the study in an SQLite file, which no other process may use meanwhile.

    Trials that a killed process has left are tried again first.

    Args:
        path: of the file; it and its folder are made where they are missing.
        seed: of the proposals.

    Raises:
        UserError: Optuna is missing, the file cannot be read or written, or another process uses it.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("nd tune needs Optuna, which is not installed: pip install nd[tune].") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), str(path)), _file_errors(path):
        study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}", study_name=path.stem, direction="maximize", load_if_exists=True
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
        # A sampler remembers nothing between calls: with one seed a resumed study would propose the same again.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        yield study


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Say in one message that the file of a study is of no use: damaged, or on a disk that is full or read-only."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = " ".join(str(getattr(cause, "orig", cause)).split())
        raise UserError(
            f"{path}, the study, cannot be read or written: {reason}. Make room, or give another place "
            "(paths.results=<folder>); where the file is damaged, remove it. Runs that are done are found again."
        ) from error


def search(
    study: Study,
    space: Sequence[Swept],
    compose: Callable[[Mapping[str, str]], Config],
    n_trials: int,
    say: Callable[[str], None],
) -> int:
    """Try settings until the study has enough; of values that are all listed, every combination at most once a call.

    Args:
        study: goes on from the trials that it has.
        space: keys to choose.
        compose: makes the configuration of a choice.
        n_trials: wanted, with those that are done.
        say: takes a line for every trial.

    Returns:
        How many trials of this call failed.

    Raises:
        UserError: all trials failed and the study has none that did not, with the message of the last.
    """
    grid = list(product(*(one.values for one in space)))  # none where one has an interval
    known = {_point(one) for one in completed(study)}
    done, n_trials = len(known if grid else completed(study)), min(n_trials, len(grid) or n_trials)
    chain, failures, n_before = quiet_chain(), list[str](), done
    while done < n_trials and len(failures) < (MOST_FAILURES if done == n_before else n_trials):
        proposed = _proposed(study, space, [point for point in grid if point not in known], n_trials - done)
        if proposed is None:  # what is left has failed
            break
        trial, values = proposed
        outcome = score(values, compose, chain, trial)
        known.add(tuple(values.values()))
        if outcome.state == "done":
            done += 1
            value, best = study.trials[trial.number].value, study.best_value
            say(f"{done} of {n_trials}: {described(values)}: {value:.4f} (best {best:.4f})")
        else:
            failures.append(outcome.message)
            say(f"{described(values)} FAILED: {outcome.message}")
    if failures and not done:
        raise UserError(f"{len(failures)} trials of this call failed, all. The study is kept. The last: {failures[-1]}")
    if done == n_before and len(failures) == MOST_FAILURES:
        say(f"stopped: the first {MOST_FAILURES} trials of this call have all failed")
    return len(failures)


def _proposed(
    study: Study, space: Sequence[Swept], left: Sequence[Point], n_wanted: int
) -> tuple[Trial, dict[str, str]] | None:
    """Return the next trial with its values as typed.

    Args:
        study: proposes.
        space: keys to choose.
        left: where all values are listed, the combinations to choose from.
        n_wanted: trials still to be made; where that is all of ``left`` they come in order, what failed before last.

    Returns:
        None where all values are listed and nothing is left.
    """
    from optuna.trial import TrialState

    listed = all(one.values for one in space)
    if listed and not left:
        return None
    failed = {_point(one) for one in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
    left = sorted(left, key=lambda point: point in failed)
    if listed and len(left) <= n_wanted:
        study.enqueue_trial({one.key: value for one, value in zip(space, left[0], strict=True)})
    while True:
        trial = study.ask()
        values = {one.key: one.suggest(trial) for one in space}
        if not listed or tuple(values.values()) in left:
            trial.set_user_attr(VALUES, values)
            return trial, values
        study.tell(trial, state=TrialState.FAIL)  # it is known already
        study.enqueue_trial({one.key: value for one, value in zip(space, left[0], strict=True)})


def _point(trial: FrozenTrial) -> Point:
    return tuple(trial.user_attrs.get(VALUES, {}).values())


def score(
    values: Mapping[str, str], compose: Callable[[Mapping[str, str]], Config], chain: Chain, trial: Trial
) -> Outcome:
    """Do the run of one trial, tell the study run, scores and what it is worth, and return what became of it."""
    from optuna.trial import TrialState

    try:
        cfg = compose(values)
        outcome = do(cfg, chain, wait=True)
    except UserError as error:  # values that each are sound, but not together
        outcome = Outcome("failed", message=str(error))
    if outcome.state != "done":
        trial.study.tell(trial, state=TrialState.FAIL)
        return outcome
    folder = RunFolder.open(cfg, "evaluate")
    scores = read_scores(folder.path)
    names = chosen_scores(cfg.tune.scores, scores)
    trial.set_user_attr(RUN, folder.run_id)
    trial.set_user_attr(MEANS, {name: scores.scores[name].mean for name in names})
    trial.study.tell(trial, value_of(names, scores))
    return outcome


def completed(study: Study) -> list[FrozenTrial]:
    """Return the trials that have a value, in the order in which they were made."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def described(values: Mapping[str, Any]) -> str:
    """Return settings as they would be typed."""
    return " ".join(f"{key}={value}" for key, value in values.items())
