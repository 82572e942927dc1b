"""The words of a command line: split with Hydra's parser, and handed on to Hydra."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.utils import get_args_parser

from nd.config.conf_files import search_folders, search_path
from nd.config.overrides import Reading
from nd.errors import UserError

SWITCHES = ("run", "multirun", "resolve", "hydra-help", "shell-completion")  # Hydra's, passed on
ALONE = ("run", "multirun", "cfg", "info", "shell-completion")  # of which Hydra takes one


def searched(reading: Reading) -> list[str]:
    """Return the override by which Hydra looks where composition has looked: in folders given and those of plug-ins."""
    further = search_folders(search_path(reading.hydra))[1:]
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in further)}]"] if further else []


def parse(name: str, argv: list[str]) -> tuple[Namespace, list[str]]:
    """Split a command line with Hydra's parser into its arguments and the flags to pass on (``-m``, ``--cfg job``).

    Raises:
        UserError: flags that are not used, or do not go together.
    """
    parser = get_args_parser()
    parser.prog = f"nd {name}"
    args = parser.parse_intermixed_args(argv)  # intermixed: flags may stand between overrides
    if args.config_name or args.config_path or args.experimental_rerun:
        raise UserError(
            "--config-name, --config-path and --experimental-rerun are not used; add a folder with"
            " --config-dir=<folder>."
        )
    if args.config_dir:
        args.overrides.append(f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]")
    alone = [flag for flag in ALONE if getattr(args, flag.replace("-", "_"))]
    if len(alone) > 1:
        raise UserError(f"{' and '.join(f'--{flag}' for flag in alone)} do not go together. Leave one of them out.")
    if (args.resolve or args.package) and not args.cfg:
        raise UserError("--resolve and --package say how --cfg prints: give --cfg job with them.")
    flags = [f"--{name}" for name in SWITCHES if getattr(args, name.replace("-", "_"))]
    flags += [f"--{name}={getattr(args, name)}" for name in ("cfg", "package", "info") if getattr(args, name)]
    return args, flags


@contextmanager
def command_line(argv: list[str]) -> Iterator[None]:
    """Let Hydra see ``argv``, and let errors through instead of Hydra's shortened report."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
