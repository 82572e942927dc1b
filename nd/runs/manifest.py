"""The record that lies beside every output: what ran, with what, on what, from what, for how long."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from nd import __version__
from nd.config import Config
from nd.machine import device, peak_memory_mb, versions
from nd.runs.identity import identity_of
from nd.runs.outputs import Output

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


class FileState(TypedDict):
    """What is recorded of a file that a run read."""

    size: int
    mtime_ns: int
    sha256: str
    added: NotRequired[dict[str, str]]


class Manifest(TypedDict):
    """What a manifest holds; the entries of a device, of packages and of seconds are for people."""

    verb: str
    identity: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]
    seeds: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileState]
    nd: str
    python: str
    packages: dict[str, str]
    git: dict[str, Any]
    device: dict[str, Any]
    seconds: float
    peak_memory_mb: NotRequired[dict[str, float]]
    attempts: NotRequired[int]
    execution: NotRequired[dict[str, Any]]
    outputs: NotRequired[dict[str, Output]]


class Identity(TypedDict, total=False):
    """Those parts of an identity that are looked into."""

    targets: dict[str, dict[str, Any]]


class AnyManifest(TypedDict, total=False):
    """What is read of manifests of any version."""

    identity: Identity
    config: dict[str, Any]
    overrides: list[str]
    inputs: dict[str, Any]
    files: dict[str, Any]
    seconds: float
    attempts: int


def git_state() -> dict[str, Any]:
    """Return revision, whether tracked files differ from it, and a hash of the difference; empty without a checkout.

    As they are when a process asks first: what is changed later it does not run.
    """
    return dict(_state_of(PACKAGE_ROOT))


@cache
def _state_of(package: Path) -> dict[str, Any]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=20, text=True, errors="replace").stdout

    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        if top / "nd" != package:  # installed below somebody else's repository, whose revision says nothing
            return {}
        difference = git("diff", "HEAD", "--", "nd", "conf", "experiments")
        revision = git("rev-parse", "HEAD").strip()
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


def end(manifest: dict[str, Any], seconds: float, outputs: dict[str, Output] | None = None) -> dict[str, Any]:
    """Return the manifest at the end of an attempt.

    Args:
        manifest: as it stood.
        seconds: of this attempt, added to those of earlier ones.
        outputs: what a run that is finished has left.
    """
    total = round(manifest["seconds"] + seconds, 3)
    found = {"seconds": total, "peak_memory_mb": peak_memory_mb(), "device": device()}
    return manifest | found | ({} if outputs is None else {"outputs": outputs})
