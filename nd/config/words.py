"""Verbs whose words are not one configuration: names and options, or a command line that stands for many runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn

from nd.config.application import compose
from nd.config.groups import PathsConfig
from nd.errors import UserError, unknown
from nd.terminal import exit_with


@dataclass(frozen=True)
class Words:
    """What was given to a verb.

    Attributes:
        bare: words without ``=``.
        options: the others, by key.
        paths: where runs, caches and results lie.
    """

    bare: tuple[str, ...]
    options: dict[str, str]
    paths: PathsConfig

    def switch(self, key: str) -> bool:
        """Return an option that is true or false; false where it was not given."""
        given = self.options.get(key, "false").lower()
        if given not in ("true", "false"):
            raise UserError(f"{key}={given}: true or false was wanted.")
        return given == "true"


def read_words(argv: Collection[str], allowed: Collection[str] | None) -> Words:
    """Sort the words of a command line.

    Args:
        argv: as given.
        allowed: keys of options; None: any.

    Raises:
        UserError: a flag, an option that is not allowed, or a wrong path.
    """
    pairs = [text.partition("=") for text in argv]
    options = {key: value for key, equals, value in pairs if equals and key.partition(".")[0] != "paths"}
    for text in argv:
        if text.startswith("-"):
            raise UserError(f"{text}: this verb takes no flags but --help.")
    for key in options:
        if allowed is not None and key not in allowed:
            raise unknown("option", key, [*allowed, "paths.root", "paths.runs"])
    paths = compose([text for text in argv if text.startswith(("paths.", "paths="))]).paths
    return Words(tuple(key for key, equals, _ in pairs if not equals), options, paths)


def verb_of_command(function: Callable[[list[str]], int]) -> Callable[[list[str] | None], NoReturn]:
    """Make a command of a function of words that stand for many configurations, and that returns the exit code.

    ``-m`` is understood.
    """
    return _command(
        function.__name__, lambda argv: function([word for word in argv if word not in ("-m", "--multirun")])
    )


def _command(name: str, act: Callable[[list[str]], int]) -> Callable[[list[str] | None], NoReturn]:
    """Make a command that ends as other verbs do, and answers ``--help``."""

    def answer(argv: list[str]) -> int:
        if "-h" in argv or "--help" in argv:
            from nd.config.help import verb_help

            print(verb_help(name, [word for word in argv if "=" in word]))
            return 0
        return act(argv)

    def main(argv: list[str] | None = None) -> NoReturn:
        exit_with(name, lambda: answer(list(sys.argv[1:] if argv is None else argv)))

    return main


def verb_of_words(
    function: Callable[[Words], int], allowed: Collection[str] | None = ()
) -> Callable[[list[str] | None], NoReturn]:
    """Make a command of a function of words that returns the exit code.

    Args:
        function: what the verb does.
        allowed: keys of its options; None: it checks them itself.
    """
    return _command(function.__name__, lambda argv: function(read_words(argv, allowed)))
