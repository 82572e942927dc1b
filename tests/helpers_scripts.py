"""Scripts of experiments/, which are no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def load_script(path: str) -> ModuleType:
    """The script experiments/<path>, under a name of its own: several are called train.py."""
    name = path.removesuffix(".py").replace("/", "_").replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if (folder := str((EXPERIMENTS / path).parent)) not in sys.path:
        sys.path.append(folder)  # as where it is started: its neighbours can be imported
    spec.loader.exec_module(module)
    return module
