"""The console script: ``nd VERB key=value ...`` hands over to the verb's module."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import NoReturn

from nd import __version__
from nd.errors import did_you_mean
from nd.terminal import show_what_it_can
from nd.verbs import VERBS, overview


def main(argv: list[str] | None = None) -> NoReturn:
    """Answer ``nd [--help | --version | VERB ...]``; exits with the verb's code, or 2 for an unknown verb."""
    show_what_it_can()
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0 if given else 2)
    if given[0] == "-V" or "--version" in given:  # behind a verb too, where Hydra would tell its own
        print(f"nd {__version__}")
        sys.exit(0)
    name = given[0]
    if name not in VERBS:
        print(f"nd: unknown verb {name!r}.{did_you_mean(name, VERBS)} Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        sys.exit(2)
    gc.set_threshold(50_000, 20, 20)  # a configuration is many small objects: going through them took a tenth of a verb
    module = "nd.doctor.report" if name == "doctor" else f"nd.{name}"
    importlib.import_module(module).main(given[1:])
    raise AssertionError(f"nd.{name}.main returned instead of exiting")


if __name__ == "__main__":
    main()
