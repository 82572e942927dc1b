"""Reconstruct seen images from fMRI: several published methods under one data format, evaluation and command line.

The names below are the public interface; each is loaded when first used, so that ``import nd`` costs nothing.
None of them is the name of a module of the package (``nd.run``, ``nd.evaluate``, ``nd.config``): importing a module
sets it as an attribute here, and would take the place of a function of the same name.
"""

from typing import TYPE_CHECKING, Any

from nd.threads import set_up_threads

__version__ = "0.1.0"

set_up_threads()  # here, because it must come before PyTorch, and whatever uses nd imports this first

if TYPE_CHECKING:
    from nd.config import Config
    from nd.errors import UserError
    from nd.interface.array_scores import ArrayScores, score_arrays
    from nd.interface.estimators import FastL2LiR, Ridge
    from nd.interface.execution import compose, execute
    from nd.interface.finished_run import FinishedRun, read_run
    from nd.interface.pipeline_guidance import guide_pipeline, tower_features

__all__ = [
    "ArrayScores",
    "Config",
    "FastL2LiR",
    "FinishedRun",
    "Ridge",
    "UserError",
    "__version__",
    "compose",
    "execute",
    "guide_pipeline",
    "read_run",
    "score_arrays",
    "tower_features",
]

_HOME = {
    "config": ("Config",),
    "errors": ("UserError",),
    "interface.array_scores": ("ArrayScores", "score_arrays"),
    "interface.estimators": ("FastL2LiR", "Ridge"),
    "interface.execution": ("compose", "execute"),
    "interface.finished_run": ("FinishedRun", "read_run"),
    "interface.pipeline_guidance": ("guide_pipeline", "tower_features"),
}

if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Load a public name from the module it lives in."""
        from importlib import import_module

        for module, names in _HOME.items():
            if name in names:
                return getattr(import_module(f"nd.{module}"), name)
        raise AttributeError(f"module 'nd' has no attribute {name!r}. Public names: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
