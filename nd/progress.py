"""A progress bar that a Lightning callback moves: on the first process alone, closed before any message."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm.auto import tqdm


class ProgressBar(Callback):
    """Done, rate and time left. Who inherits opens it, moves ``bar`` where there is one, and closes it at the end."""

    bar: Any = None

    def open(self, trainer: Trainer, total: int, done: int, what: str, unit: str) -> None:
        """Show the bar on the first process, with what an interrupted run has done."""
        if trainer.is_global_zero:
            self.bar = tqdm(total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True)

    def close(self) -> None:
        """Take the bar away where there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message starts on its own line."""
        self.close()
