"""The chain of steps behind a row, each done once however many rows share it, and only where its result is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from nd.config.schema import ALL, Config
from nd.data.prepared import open_subject, subject_path
from nd.errors import BusyError, UserError
from nd.files import sha256_json
from nd.locks import holder, wait_until_free
from nd.runs.folder import RunFolder
from nd.runs.identity import (
    VERBS,
    extracted_identity,
    mapper_of,
    prepared_identity,
    reads_predictions,
    reads_targets,
)

log = logging.getLogger(__name__)

Action = Callable[[Config], None]
STATES = ("done", "being computed", "failed", "interrupted", "missing")
SHARED = ("prepare", "extract", "train", "predict")  # steps that rows have in common: a user's mistake there stops all


class StepFailed(Exception):  # noqa: N818 - a fact about a step, carried to the rows that need it
    """A step that this row needs has failed; the text says which and why."""


@dataclass(frozen=True)
class Step:
    """One verb on one configuration."""

    verb: str
    cfg: Config

    @cached_property
    def folder(self) -> RunFolder | None:
        """The step's run folder; None for ``prepare`` and ``extract``, which look after their own files."""
        return RunFolder.open(self.cfg, self.verb) if self.verb in VERBS else None

    @property
    def name(self) -> str:
        """What the step makes, for people."""
        if self.folder is not None:
            return self.folder.path.name
        if self.verb == "prepare":
            return self.cfg.data.name
        return f"{self.cfg.data.name} {', '.join(extracted(self.cfg))}"

    @property
    def key(self) -> str:
        """Equal for steps that do the same thing."""
        if self.folder is not None:
            return f"{self.verb} {self.folder.run_id}"
        cfg = self.cfg
        reads = prepared_identity(cfg) if self.verb == "prepare" else extracted_identity(cfg, extracted(cfg))
        return f"{self.verb} {sha256_json(reads)}"


def extracted(cfg: Config) -> list[str]:
    """The targets that ``extract`` computes: one, or all of the method and those that only teach their mappers."""
    if cfg.target.name != ALL:
        return [cfg.target.name]
    return list(dict.fromkeys([*cfg.method.targets, *teachers(cfg)]))


def teachers(cfg: Config) -> list[str]:
    """The targets that teach auxiliary heads of the method's mappers, where those are trained."""
    every = [cfg.decoding(name) for name in cfg.method.targets] if reads_predictions(cfg) else []
    trained = [one.training for one in every if mapper_of(one).trained]
    return [training.aux_target for training in trained if training.aux_target and training.aux_weight]


def steps_of(cfg: Config) -> list[Step]:
    """Return the steps of one row in order."""
    per_target = [cfg.with_target(name) for name in cfg.method.targets] if reads_targets(cfg) else []
    steps = [Step("prepare", cfg)]
    if per_target:
        alone = len(per_target) == 1 and not teachers(cfg)
        steps.append(Step("extract", per_target[0] if alone else cfg.with_target(ALL)))
    if reads_predictions(cfg):
        steps += [*(Step("train", one) for one in per_target), Step("predict", cfg)]
    return [*steps, Step("reconstruct", cfg), Step("evaluate", cfg)]


def pretrain_of(cfg: Config) -> Config:
    """The configuration of the stage that a network trained in two goes through before, in a run folder of its own."""
    earlier = {
        name: replace(one, training=replace(one.training, stage="pretrain")) for name, one in cfg.decodings.items()
    }
    return replace(
        cfg,
        training=replace(cfg.training, stage="pretrain"),
        decodings=earlier,
        subject=replace(cfg.subject, sessions=0),
        overrides=[*cfg.overrides, "training.stage=pretrain", "subject.sessions=0"],
    )


def _links(step: Step, earlier: Sequence[Step]) -> dict[str, str]:
    """Return the fingerprints, as they are now, of the finished runs a step was made from, named as its verb does."""
    done = [(other, other.folder) for other in earlier if other.folder is not None and other.folder.done]
    if step.verb == "predict":
        return {f"train {other.cfg.target.name}": run.fingerprint for other, run in done if other.verb == "train"}
    names = {("reconstruct", "predict"): "predictions", ("evaluate", "reconstruct"): "images"}
    pairs = ((names.get((step.verb, other.verb)), run) for other, run in done)
    return {name: run.fingerprint for name, run in pairs if name}


def check_finished(steps: Sequence[Step]) -> None:
    """Refuse finished runs whose inputs have changed since, and name all that was made from them."""
    for position, step in enumerate(steps):
        try:
            if step.folder is not None:
                step.folder.is_done(_links(step, steps[:position]))
        except UserError as error:
            later = [other.folder for other in steps[position + 1 :] if other.folder and other.verb != step.verb]
            derived = " ".join(str(folder.path) for folder in later if folder.path.exists())
            raise UserError(
                f"{error}\nWhat was made from it must go too: {derived}" if derived else str(error)
            ) from None


def check_rois(steps: Sequence[Step]) -> None:
    """Refuse ROIs that the prepared subject does not have, before features are computed to be decoded from them."""
    for step in steps:
        training = step.verb == "train" and step.folder is not None and not step.folder.done
        if training and subject_path(step.cfg).is_file():
            open_subject(step.cfg)


def state_of(steps: Sequence[Step]) -> str:
    """Return how far a row is, by its run folders: one of ``STATES``."""
    if steps[-1].folder is not None and steps[-1].folder.done:
        return "done"
    open_ = [step.folder for step in open_steps(steps) if step.folder is not None]
    if any(folder.busy for folder in open_):
        return "being computed"
    statuses = {folder.status for folder in open_}
    return "failed" if "failed" in statuses else "interrupted" if "running" in statuses else "missing"


def open_steps(steps: Sequence[Step]) -> list[Step]:
    """Return the steps of a row whose run folders are still to be finished: of a finished prediction no mapper is."""
    if steps[-1].folder is not None and steps[-1].folder.done:
        return []
    return [step for step in _wanted(steps) if step.folder is not None and not step.folder.done]


def _wanted(steps: Sequence[Step]) -> list[Step]:
    """Return the steps of a row without those that train: a finished prediction needs its mappers no more."""
    predicted = any(step.verb == "predict" and step.folder is not None and step.folder.done for step in steps)
    return [step for step in steps if not (predicted and step.verb == "train")]


def traceback_of(steps: Sequence[Step]) -> str:
    """Return the traceback of the first step of a row that failed; empty where none did."""
    found = (step.folder.traceback for step in steps if step.folder is not None)
    return next((text for text in found if text), "")


def failure_of(steps: Sequence[Step]) -> str:
    """Return the last line of that traceback."""
    return traceback_of(steps).rpartition("\n")[2]


class Chain:
    """Runs steps, remembers what it has done, and prints one line for each."""

    def __init__(self, actions: Mapping[str, Action], say: Callable[[str], None] = print) -> None:
        """Take what does each verb, and where lines go."""
        self.actions, self.say = actions, say
        self.seen: dict[str, str] = {}  # step key -> "" when well, else what went wrong

    def run_row(self, steps: Sequence[Step]) -> None:
        """Do what is missing of one row.

        Raises:
            StepFailed: a step went wrong; other rows may still succeed.
            UserError: a mistake in something all rows share; nothing else can succeed.
        """
        check_finished(steps)
        last = steps[-1]
        if last.folder is not None and last.folder.done:
            self._note(last, "done already")
            return
        wanted = _wanted(steps)
        for step in wanted:
            self._do(step, last)
            if step.verb == "prepare":
                check_rois(wanted)

    def _do(self, step: Step, last: Step) -> None:
        if step.key in self.seen:
            if self.seen[step.key]:
                raise StepFailed(self.seen[step.key])
            return
        if step.folder is not None and step.folder.done:
            self._note(step, "done already")
            return
        begun = time.monotonic()
        try:
            done_here = self._act(step)
        except Exception as error:
            self._fail(step, last, error)
        self._note(step, f"{time.monotonic() - begun:.1f} s" if done_here else "done elsewhere")

    def _act(self, step: Step) -> bool:
        """Do a step, unless another process is at it: that one is waited for. Return whether it was done here."""
        while True:
            if step.folder is not None and step.folder.busy:
                self._wait(step, step.folder.lock)
            if step.folder is not None and step.folder.done:
                return False
            try:
                self.actions[step.verb](step.cfg)
                return True
            except BusyError as busy:  # it was begun there in this moment
                self._wait(step, busy.lock)

    def _wait(self, step: Step, lock: Path) -> None:
        self.say(f"  {step.verb:<12}{step.name:<64}{'waiting':>14}\n    it is being computed by {holder(lock)}")
        wait_until_free(lock)

    def _note(self, step: Step, text: str) -> None:
        self.seen[step.key] = ""
        self.say(f"  {step.verb:<12}{step.name:<64}{text:>14}")

    def _fail(self, step: Step, last: Step, error: Exception) -> NoReturn:
        """Say what went wrong; the traceback is in the step's folder, or in that of the row where it has none."""
        if isinstance(error, UserError) and step.verb in SHARED:
            raise error
        folder, where = step.folder or last.folder, ""
        if folder is not None and not isinstance(error, UserError):
            with suppress(UserError):  # on a full disk the first error is the one to show
                folder.fail(error)
            where = f" (traceback: {folder.path / 'status'})"
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}{where}"
        self.seen[step.key] = f"{step.verb} {step.name}: {message}"
        self.say(f"  {step.verb:<12}{step.name:<64}{'FAILED':>14}\n    {message}")
        log.debug("step failed", exc_info=error)
        raise StepFailed(self.seen[step.key]) from error
