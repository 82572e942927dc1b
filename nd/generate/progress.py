"""One progress bar in images."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from nd.generate.parts import Parts
from nd.progress import ProgressBar


class ImageProgress(ProgressBar):
    """Images finished by all processes, images per second and time left, on the first process."""

    def __init__(self, total: int, parts: Parts) -> None:
        """Count the images of ``parts``, up to ``total``."""
        self.total, self.parts = total, parts

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the images an interrupted run has left."""
        self.open(trainer, self.total, len(self.parts.finished()), "reconstruct", "image")

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Move the bar to what is on disk."""
        if self.bar is not None:
            self.bar.update(len(self.parts.finished()) - self.bar.n)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self.close()
