"""The record that lies beside every output: what ran, with what, on what, from what, for how long."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nd import __version__
from nd.config import Config
from nd.machine import device, peak_memory_mb, versions
from nd.runs.identity import identity_of

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=20, text=True, errors="replace").stdout


def git_state() -> dict[str, Any]:
    """Return revision, whether tracked files differ from it, and a hash of the difference; empty without a checkout."""
    try:
        top = Path(_git("rev-parse", "--show-toplevel").strip())
        if top / "nd" != PACKAGE_ROOT:  # installed below somebody else's repository, whose revision says nothing
            return {}
        difference = _git("diff", "HEAD", "--", "nd", "conf", "experiments")
        revision = _git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    digest = hashlib.sha256(difference.encode()).hexdigest()[:12] if difference else ""
    return {"revision": revision, "dirty": bool(difference), "difference": digest}


def begin(
    verb: str, cfg: Config, inputs: dict[str, str], files: dict[str, Any], earlier: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest of a run that starts; ``earlier`` is the manifest of an interrupted attempt, or empty."""
    return {
        "verb": verb,
        "identity": identity_of(verb, cfg),
        "config": asdict(cfg),
        "overrides": list(cfg.overrides),
        "seeds": {"seed": cfg.seed, "world_seed": getattr(cfg.data, "world_seed", None)},
        "oracle": cfg.features == "oracle",
        "simulated": cfg.data.simulated,
        "transductive": cfg.transductive,
        "control": cfg.control,
        "inputs": dict(inputs),
        "files": files,
        "nd": __version__,
        "python": platform.python_version(),
        "packages": versions(),
        "git": git_state(),
        "device": device(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "attempts": int(earlier.get("attempts", 0)) + 1,
        "seconds": float(earlier.get("seconds", 0.0)),
        "execution": dict(earlier.get("execution", {})),
    }


def end(manifest: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the manifest with the time of this attempt added to that of earlier ones, and the peak memory."""
    total = round(manifest["seconds"] + seconds, 3)
    return manifest | {"seconds": total, "peak_memory_mb": peak_memory_mb(), "device": device()}
