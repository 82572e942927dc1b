"""One progress bar in images."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from nd.generate.parts import Parts


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
