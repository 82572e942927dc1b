"""One progress bar in images, and Lightning without its advertisements."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from nd.generate.parts import Parts

# Device listings, tips and advertisements arrive as INFO records of these loggers.
LIGHTNING_LOGGERS = (
    "pytorch_lightning",
    "lightning.pytorch",
    "lightning_fabric",
    "pytorch_lightning.utilities.rank_zero",
)


class ImageProgress(Callback):
    """Images finished by all processes, images per second and time left, on the first process."""

    def __init__(self, total: int, parts: Parts) -> None:
        """Count the images of ``parts``, up to ``total``."""
        self.total, self.parts = total, parts
        self.bar: Any = None

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the images an interrupted run has left."""
        if trainer.is_global_zero:
            self.bar = tqdm(
                total=self.total,
                initial=len(self.parts.finished()),
                desc="reconstruct",
                unit="image",
                dynamic_ncols=True,
            )

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Move the bar to what is on disk."""
        if self.bar is not None:
            self.bar.update(len(self.parts.finished()) - self.bar.n)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message starts on its own line."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's device listings, tips and its warnings about loggers and loader workers off the screen."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|lightning")
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
