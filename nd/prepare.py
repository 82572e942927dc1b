"""``nd prepare``: write a data set in the prepared format, all of its subjects at once."""

from __future__ import annotations

import time
from pathlib import Path

from nd.config import verb
from nd.data.folder import Settings, folder_megabytes, make_folder
from nd.data.prepared import data_folder
from nd.schema import Config


def prepare(cfg: Config) -> Path:
    """Write ``<paths.data>/<data.name>`` and return it. Raises UserError and leaves nothing where that fails."""
    from nd.results.manifest import git_state, versions

    start, folder = time.monotonic(), data_folder(cfg)
    record = {"simulated": cfg.data.simulated, "git": git_state(), "packages": versions(), "overrides": cfg.overrides}
    written = make_folder(folder, _settings(cfg), lambda temporary: _write(cfg, temporary), record)
    size = f"{folder_megabytes(folder):.1f} MB"
    if written:
        people = f"{len(cfg.data.subjects)} subject" + "s" * (len(cfg.data.subjects) > 1)
        seconds = time.monotonic() - start
        print(f"wrote {cfg.data.name}: {people} and the stimuli, {size} at {folder}, in {seconds:.0f} s")
    else:
        print(f"{cfg.data.name} is already prepared at {folder} ({size}); nothing to do")
    return folder


def _settings(cfg: Config) -> Settings:
    """Everything the prepared files depend on."""
    if cfg.data.name == "digits69":
        from nd.data.digits69 import settings_of as digits_settings

        return digits_settings(cfg.data)
    from nd.scenes.world import settings_of as scenes_settings

    return scenes_settings(cfg.data)


def _write(cfg: Config, folder: Path) -> None:
    if cfg.data.name == "digits69":
        from nd.data.digits69 import write_digits69

        write_digits69(cfg.data, folder)
    else:
        from nd.scenes.world import write_world

        write_world(cfg.data, folder)


main = verb(prepare)

if __name__ == "__main__":
    main()
