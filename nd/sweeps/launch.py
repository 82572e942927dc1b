"""Doing the runs of a sweep: here one after the other, or as jobs of one of Hydra's launchers, until none is left.

A run that another process is making is left to it: the others come first, then it is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nd.config.launchers import LOCAL, at_once, chosen_launcher, launch, lost_job, wait_for_others
from nd.config.sweeps import NOTES, new_folder
from nd.errors import UserError
from nd.run import chain_of, share
from nd.sweeps.listing import SweepRun
from nd.sweeps.work import Jobs, Notes, Outcome, do, duration, first_line

LOST = "its process was killed. Systems end processes when memory runs out: then run fewer jobs at once"
LOOK_S = 0.5  # between looks at what jobs have noted, and at runs of other processes
Say = Callable[[str], None]


class Sweep:
    """The runs of a sweep on their way."""

    def __init__(self, runs: Sequence[SweepRun], hydra: Sequence[str], fail_fast: bool, say: Say = print) -> None:
        """Take the runs that are to be done.

        Args:
            runs: each once.
            hydra: overrides for Hydra, the launcher's among them.
            fail_fast: begin no further run once one has failed.
            say: takes a line for every run that has ended.
        """
        self.runs, self.hydra, self.fail_fast, self.say = list(runs), list(hydra), fail_fast, say
        self.outcomes: dict[str, Outcome] = {}
        self.begun = time.monotonic()
        self.chain = chain_of(say)

    def do(self) -> dict[str, Outcome]:
        """Do all runs, waiting for those that other processes are making; returns what became of each, by its id.

        A run without an outcome was not begun.
        """
        left = self.runs
        while left and not self._stopped:
            free = [run for run in left if not run.taken]
            if not free:
                self._wait(left)
                continue
            if chosen_launcher(self.hydra) == LOCAL:
                self._here(free)
            else:
                self._elsewhere(free)
            tried = {run.id for run in free}
            left = [run for run in left if run.id not in tried or self._taken(run)]
        return self.outcomes

    @property
    def _stopped(self) -> bool:
        return self.fail_fast and any(one.state in ("failed", "lost") for one in self.outcomes.values())

    def _taken(self, run: SweepRun) -> bool:
        """Whether another process turned out to be making a run; it is nobody's outcome."""
        if run.id in self.outcomes and self.outcomes[run.id].state == "taken":
            del self.outcomes[run.id]
            return True
        return False

    def _wait(self, runs: Sequence[SweepRun]) -> None:
        """Return once one of some runs is free, or done."""
        self.say(f"waiting for {len(runs)} runs that other processes are making: {', '.join(run.id for run in runs)}")
        while all(run.taken for run in runs):
            time.sleep(LOOK_S)

    def _ended(self, run: SweepRun, outcome: Outcome) -> None:
        """Note an outcome and say it, with how long the others may take."""
        self.outcomes[run.id] = outcome
        words = {"done": "done", "failed": "FAILED", "lost": "LOST", "taken": "is being made by another process"}
        n_ended, n = len([one for one in self.outcomes.values() if one.state != "taken"]), len(self.runs)
        passed = time.monotonic() - self.begun
        left = f", about {duration(passed / n_ended * (n - n_ended))} left" if 0 < n_ended < n else ""
        self.say(f"{n_ended} of {n}{left}: {run.id} {run.label} {words[outcome.state]} ({duration(outcome.seconds)})")
        if outcome.message:
            self.say(f"    {first_line(outcome.message)}")

    def _here(self, runs: Sequence[SweepRun]) -> None:
        """Do runs in this process; what they have in common is done first, and once."""
        share([run.entry.cfg for run in runs], self.chain)
        for run in runs:
            if self._stopped:
                return
            self.say(run.label)
            self._ended(run, do(run.entry.cfg, self.chain))

    def _elsewhere(self, runs: Sequence[SweepRun]) -> None:
        """Do runs as jobs, and those again, each alone, that were at work when a process was lost.

        With joblib one process that is killed takes the others with it; which one it was shows when they run alone.
        """
        size = at_once(self.hydra) or len(runs)
        batches = [list(runs[k : k + size]) for k in range(0, len(runs), size)]
        while batches and not self._stopped:
            batch = batches.pop(0)
            with new_folder(batch[0].entry.cfg) as folder:
                notes = Notes(folder / NOTES)
                notes.folder.mkdir(parents=True)
                lost = self._launched(batch, folder, notes)
                begun = {run.id for k, run in enumerate(batch) if notes.begun(k)}
                stopped = notes.stopped
            left = [run for run in batch if run.id not in self.outcomes]
            if lost is None or not left or stopped:
                continue
            if chosen_launcher(self.hydra) != "joblib" or len(batch) == 1:
                for run in left:
                    self._ended(run, Outcome("lost", message=LOST))
            elif not begun:
                raise lost
            else:
                others = [run for run in left if run.id not in begun]
                batches = [*([run] for run in left if run.id in begun), *([others] if others else []), *batches]

    def _launched(self, runs: Sequence[SweepRun], folder: Path, notes: Notes) -> UserError | None:
        """Hand runs to the launcher and note how they end; returns what to say where it lost a process."""
        jobs = Jobs([[*run.entry.cfg.overrides, "trainer.progress=false"] for run in runs], notes, self.fail_fast)
        with self._watching(runs, notes):
            try:
                launch(jobs, len(runs), self.hydra, folder)
            except Exception as error:
                lost = lost_job(error)
                if lost is None:
                    raise
                wait_for_others(error)
                while any(notes.alive(k) for k in range(len(runs))):
                    time.sleep(LOOK_S)
                return lost
            except BaseException:
                notes.stop()
                raise
        return None

    @contextmanager
    def _watching(self, runs: Sequence[SweepRun], notes: Notes) -> Iterator[None]:
        """Say how jobs end while they run; by the end all that have ended are noted."""
        ended, over = set[int](), threading.Event()

        def look() -> None:
            for k, run in enumerate(runs):
                if k not in ended and (outcome := notes.outcome(k)) is not None:
                    ended.add(k)
                    self._ended(run, outcome)

        def watch() -> None:
            while not over.wait(LOOK_S):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()
