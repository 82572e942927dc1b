"""Run folders: found by identity, written by one process at a time, finished or resumable, never half trusted.

A folder is ``<paths.runs>/<verb>/<name>-<run_id>`` with ``config.yaml``, ``overrides.txt``, ``manifest.json`` and
``status``. The status is ``running``, ``failed`` (with the traceback) or ``done``, which is written last. A killed run
leaves ``running`` behind with its lock free: the same command goes on from what it left.

In a verb::

    folder = RunFolder.open(cfg, "train")
    inputs = {"target": store.fingerprint}
    if folder.is_done(inputs):
        return folder.path
    with folder.writing(cfg, inputs):
        ...                      # write into folder.path, skipping parts that are already there
    return folder.path
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nd.config import Config
from nd.errors import BusyError, UserError
from nd.files import HASH_CHARS, located, read_json, sha256_json, unreadable, write_json, write_text
from nd.launch import is_rank_zero
from nd.locks import is_locked, locked
from nd.runs import inputs as input_checks
from nd.runs import manifest as manifests
from nd.runs.identity import VERBS, run_id, run_name
from nd.runs.outputs import changed_sizes, describe_outputs, output_of, recorded_outputs

RUN_ID = re.compile(f"[0-9a-f]{{{HASH_CHARS}}}")
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same text in a fourth of the time, where it is there
BOOKKEEPING = frozenset({"config.yaml", "overrides.txt", "manifest.json", "status", ".lock"})


def command_for(cfg: Config, verb: str, *extra: str) -> str:
    """Return the shell command that runs a verb on a configuration with further overrides, which win; one line."""
    words = (re.sub("=''$", "=", item) for item in (*cfg.overrides, *extra))  # an empty text as people type it
    last = {item.split("=", 1)[0]: item for item in words}
    return shlex.join(["nd", verb, *last.values()])


def run_path(given: str | Path) -> Path:
    """Return the path of a run's folder; one typed inside ``runs`` (``.``, ``../<name>``) in full, to tell its verb."""
    path = located(given)
    return path if path.parent.name in VERBS else path.resolve()


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run of one verb; it need not exist yet."""

    verb: str
    path: Path
    run_id: str
    command: str = ""
    input_files: tuple[Path, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, cfg: Config, verb: str) -> RunFolder:
        """Return the folder that a verb's run of a configuration means; it need not exist, and nothing is written."""
        identity = run_id(verb, cfg)
        path = Path(cfg.paths.runs) / verb / f"{run_name(verb, cfg)}-{identity}"
        files = tuple(input_checks.input_files(verb, cfg))
        return cls(verb, path, identity, command_for(cfg, verb), files)

    @property
    def status(self) -> str:
        """``new``, ``running`` (also after a kill), ``failed`` or ``done``."""
        path = self.path / "status"
        try:
            return path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip() or "new"
        except FileNotFoundError:
            return "new"
        except OSError as error:
            raise unreadable(path, error) from None

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return self.status == "done"

    @property
    def busy(self) -> bool:
        """Whether a live process is writing the folder."""
        return is_locked(self.lock)

    @property
    def lock(self) -> Path:
        """What a process that writes the folder holds."""
        return self.path / ".lock"

    @property
    def traceback(self) -> str:
        """The traceback of a failed run; empty for any other."""
        status = (self.path / "status").read_text(encoding="utf-8") if self.failed else ""
        return status.strip().partition("\n")[2]

    @property
    def failed(self) -> bool:
        """Whether the last attempt ended with an error."""
        return self.status == "failed"

    def fail(self, error: BaseException) -> None:
        """Record an error that came before the run was begun; what an attempt has left is not touched."""
        if self.status == "new" and not self.busy:
            write_text(self.path / "status", _failed(error))

    def take_back(self) -> None:
        """Make an interrupted run of a failed one: what failed was no fault of its own."""
        if self.failed:
            with suppress(BusyError), locked(self.lock, str(self.path)):
                write_text(self.path / "status", "running\n")

    @property
    def manifest(self) -> dict[str, Any]:
        """The recorded manifest; empty for a new run.

        Raises:
            UserError: it is damaged, or that of another run.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return {}
        found: dict[str, Any] = read_json(path, manifests.Manifest, self._again)
        if RUN_ID.fullmatch(self.run_id) and sha256_json(found["identity"]) != self.run_id:
            raise UserError(f"{path} is the record of another run. {self._again}")
        return found

    @property
    def _again(self) -> str:
        """What to do where something of the folder is of no use."""
        return f"Remove {self.path} and run again: {self.command or f'nd {self.verb}'}"

    def output(self, name: str) -> Path:
        """Return the path of a file that the finished run has left, by its path in the folder.

        Raises:
            UserError: it is gone, or was changed since.
        """
        return output_of(self.path, name, self._again)

    def outputs_below(self, name: str) -> list[Path]:
        """Return the files that the finished run has left in an inner folder; errors as of ``output``."""
        return [self.output(one) for one in recorded_outputs(self.path) if one.startswith(f"{name}/")]

    @property
    def fingerprint(self) -> str:
        """Hash of identity and input contents; a later run records it as its input.

        Raises:
            UserError: the manifest is damaged or gone.
        """
        return input_checks.fingerprint(self._record)

    @property
    def _record(self) -> dict[str, Any]:
        """The manifest of a run that has one. UserError: it is damaged or gone."""
        if found := self.manifest:
            return found
        raise UserError(f"{self.path / 'manifest.json'} is gone. {self._again}")

    def is_done(self, inputs: Mapping[str, str] | None = None) -> bool:
        """Say whether the run is finished; one whose inputs have changed since is a ``UserError``."""
        if not self.done:
            return False
        recorded = self._record
        if spoilt := changed_sizes(self.path, recorded.get("outputs", {})):
            raise UserError(f"{'; '.join(spoilt)}. {self._again}")
        changed = input_checks.changed_files(recorded["files"], list(self.input_files))
        changed += input_checks.changed_inputs(recorded["inputs"], dict(inputs or {}))
        if changed:
            raise UserError(
                f"{self.path} was made from other inputs than those given now:\n  - " + "\n  - ".join(changed) + "\n"
                "Give back the former inputs, write to another place (paths.runs=...), or remove that folder and "
                f"run again: {self.command}"
            )
        return True

    @contextmanager
    def writing(self, cfg: Config, inputs: Mapping[str, str] | None = None) -> Iterator[Path]:
        """Lock the folder, record the run around the body, and mark it done; yields the folder's path.

        An exception marks it failed, with the traceback, and goes on upwards. A ``UserError`` that comes before
        anything was written leaves no folder behind.
        """
        if not is_rank_zero(cfg.trainer):
            yield self.path
            return
        with locked(self.lock, str(self.path)), _clean_start(self.path):
            if self.done:
                said = f"{self.path} has meanwhile been finished by another process. Run the command again."
                raise BusyError(said, self.lock)
            yield from self._recorded(cfg, dict(inputs or {}))

    def _recorded(self, cfg: Config, inputs: dict[str, str]) -> Iterator[Path]:
        earlier = self.manifest if self.status != "new" else {}
        self._refuse_mixing(earlier, inputs)
        files = input_checks.describe(list(self.input_files))
        manifest = manifests.begin(self.verb, cfg, inputs, files, earlier)
        write_text(self.path / "config.yaml", yaml.dump(asdict(cfg), Dumper=DUMPER, sort_keys=False))
        write_text(self.path / "overrides.txt", "".join(f"{item}\n" for item in cfg.overrides))
        write_json(self.path / "manifest.json", manifest)
        write_text(self.path / "status", "running\n")
        begun = time.monotonic()
        try:
            yield self.path
        except BaseException as error:
            with suppress(UserError):  # on a full disk the first error is the one to show
                write_text(self.path / "status", _failed(error))
                write_json(self.path / "manifest.json", manifests.end(self.manifest, time.monotonic() - begun))
            raise
        ended = manifests.end(self.manifest, time.monotonic() - begun, describe_outputs(self.path))
        write_json(self.path / "manifest.json", ended)
        write_text(self.path / "status", "done\n")

    def _refuse_mixing(self, earlier: dict[str, Any], inputs: dict[str, str]) -> None:
        """Refuse to go on with an interrupted run from other inputs: its parts would not belong together."""
        if not earlier:
            return
        changed = input_checks.changed_files(earlier["files"], list(self.input_files))
        changed += input_checks.changed_inputs(earlier["inputs"], inputs)
        if changed:
            raise UserError(
                f"{self.path} holds an unfinished run from other inputs:\n  - " + "\n  - ".join(changed) + "\n"
                f"Remove that folder and run again: {self.command}"
            )


def _failed(error: BaseException) -> str:
    return "failed\n" + "".join(traceback.format_exception(error))


@contextmanager
def _clean_start(path: Path) -> Iterator[None]:
    fresh = not (path / "status").exists()
    try:
        yield
    except UserError:
        if fresh and {item.name for item in path.iterdir()} <= BOOKKEEPING:
            shutil.rmtree(path)
        raise


def found(cfg: Config, verb: str) -> RunFolder:
    """Return the folder of a finished run; its ``fingerprint`` is a later run's input.

    Raises:
        UserError: missing, unfinished or failed, with the command to run; or made from inputs that have changed.
    """
    folder = RunFolder.open(cfg, verb)
    if folder.is_done():
        return folder
    state = {
        "new": "has not been run",
        "running": "is not finished",
        "failed": f"failed (see {folder.path / 'status'})",
    }
    raise UserError(f"the {verb} run {folder.path} {state.get(folder.status, folder.status)}. Run: {folder.command}")
