"""Fixtures shared by the tests of all parts, and how the tests are run: one thread each, the longest files first."""

from __future__ import annotations

import atexit
import builtins
import errno
import gc
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.logging import catching_logs
from _pytest.unraisableexception import gc_collect_iterations_key

if TYPE_CHECKING:
    from helpers_sweeps import Place

    from nd.config import BackboneConfig, Config

# Before anything loads a BLAS. Tests run side by side, so a second thread would only wait; and sums are then split
# alike in the processes that tests compare.
os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")})

ROOT = Path(__file__).parent.parent
LONGEST = [
    f"test_{name}.py"
    for name in (
        "experiments", "sweeps", "readme", "notebooks", "training_distributed", "training_resume",
        "two_stage", "verbs", "volumetric_training", "training", "train_predict", "volumetric",
    )
]  # fmt: skip


# Files all of whose tests take long: `make test` leaves them to `make test-slow`.
SLOW = [
    f"test_{name}.py"
    for name in (
        "cycle_training", "end_to_end", "image_to_image_runs", "image_to_image_size", "roi_scenes", "sweeps",
        "sweeps_failures", "sweeps_processes", "tune",
    )
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Have the collector go through what is left as seldom as the command line does, and not when all is over."""
    config.stash[gc_collect_iterations_key] = 0
    gc.disable()  # until all is imported
    gc.set_threshold(50_000, 20, 20)
    os.fsync = lambda handle: None  # no test cuts the power; waiting for the disk took a hundredth of all time
    catching_logs.__enter__ = caught_at_the_root  # type: ignore[method-assign]


def caught_at_the_root(self: Any) -> Any:
    """Begin to catch messages, as pytest does, but for those of loggers that pass none on.

    Looking for these among a thousand loggers, six times a test, took a sixtieth of all time.
    """
    root = logging.getLogger()
    root.addHandler(self.handler)
    self.attached_loggers.append(root)
    if self.level is not None:
        self.handler.setLevel(self.level)
        self.orig_level = root.level
        root.setLevel(min(root.level, self.level))
    return self.handler


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even read files of which no test would be run."""
    return True if collection_path.name in SLOW and "not slow" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are dealt out to the workers in this order: what takes longest must not begin last."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Let the collector pass over the modules that are loaded by now: going through them took a twelfth of all time."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let modules be taken apart when Python ends; a worker of several leaves them, and what libraries say of that.

    All of its results are told by then; taking apart took the last seven seconds of a run.
    """
    if hasattr(session.config, "workerinput"):
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
    else:
        gc.unfreeze()


@pytest.fixture(autouse=True)
def as_if_first() -> None:
    """What earlier tests of the same process drew or set up for log lines changes nothing: which they are is chance."""
    import numpy as np
    from torch import default_generator

    default_generator.manual_seed(0)  # torch.manual_seed would note the stack, for a GPU that might come
    np.random.seed(0)
    if logging.root.manager.disable != logging.NOTSET:
        logging.disable(logging.NOTSET)
    if logging.root.level != logging.WARNING:
        logging.root.setLevel(logging.WARNING)
    for name in [name for name in logging.root.manager.loggerDict if name == "nd" or name.startswith("nd.")]:
        if isinstance(logger := logging.root.manager.loggerDict[name], logging.Logger):
            if logger.level != logging.NOTSET:  # setting it goes through every logger there is
                logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True


def public_file(variable: str, name: str, what: str) -> Path:
    """A data file that is not part of the repository, at the path the variable gives; skips where there is none."""
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / "data" / name)
    if not path.is_file():
        pytest.skip(f"needs {name} ({what}): set {variable} to its path")
    return path


@pytest.fixture(scope="session")
def tiny_backbone_config(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    """A tiny untrained backbone in the real layout, built once; see helpers_backbone."""
    from helpers_backbone import tiny_backbone

    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def digits69_file() -> Path:
    """The measured data of digits69."""
    return public_file("ND_DIGITS69_FILE", "digit69_28x28.mat", "public, DGMM repository")


@pytest.fixture(scope="session")
def nsd_quantiles_file() -> Path:
    """Quantiles of NSD's noise ceilings as they were measured; skips with the reason where the file is absent."""
    path = ROOT.parent / "shared" / "data" / "nsd_ncsnr_quantiles.json"
    if not path.is_file():
        pytest.skip("needs nsd_ncsnr_quantiles.json beside the repository; the package holds a copy of its numbers")
    return path


@pytest.fixture(scope="session")
def coco_ids_file() -> Path:
    """COCO ids of the images of four NSD subjects."""
    return public_file("ND_NSD_COCO_IDS", "nsd_coco_ids.zip", "COCO ids of NSD's images")


@pytest.fixture(scope="session")
def nsd_shared_ids() -> Path:
    """0-based 73k id and COCO id of NSD's 1,000 shared images."""
    return public_file("ND_NSD_SHARED_IDS", "nsd_shared1000_ids.csv", "73k and COCO ids of NSD's shared images")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose Scenes folder is prepared: 2 subjects, 60 + 12 images, 2 repeats. Read only."""
    from helpers_config import data_settings

    from nd.config import Config
    from nd.data.prepared import data_folder
    from nd.scenes.world import pieces_of

    data = data_settings(subjects=["subj01", "subj02"], n_train=60, n_val=10, n_test=12, n_repeats=2, n_voxels=150)
    cfg = Config(data=data)
    cfg.paths.data = str(tmp_path_factory.mktemp("world"))
    data_folder(cfg).mkdir()
    for piece in pieces_of(data):
        piece.write(data_folder(cfg) / piece.name)
    return cfg


@pytest.fixture(scope="session")
def linear_world(tiny_backbone_config: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that mean a world in which voxels and targets are linear; see helpers_training. Read only."""
    from helpers_training import write_world

    return write_world(tmp_path_factory.mktemp("linear") / "world", tiny_backbone_config)


@pytest.fixture(scope="session")
def decoded_scenes(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Scenes in the smallest size with all that comes before guidance; see helpers_sweeps. Read only."""
    from helpers_sweeps import decoded_world

    return decoded_world(tmp_path_factory.mktemp("decoded"))


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a path, and what is below it, one that may not be opened or made, by root either."""
    refused: list[Path] = []

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and any(Path(path).is_relative_to(one) for one in refused):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *rest, **options)

        return call

    for module, name in ((builtins, "open"), (io, "open"), (os, "mkdir")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    return refused.append


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lightning callbacks that further trainings get."""
    from nd.mappers.training import fit

    added: list[Any] = []
    plain = fit.build_trainer

    def build(*args: Any) -> Any:
        trainer = plain(*args)
        trainer.callbacks[:0] = added  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(fit, "build_trainer", build)
    return added
