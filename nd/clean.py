"""`nd clean`: what nothing needs any more, with its size; `apply=true` removes it.

Listed are runs of earlier schema versions that no later run was made from, cache files that an interrupted
`nd extract` left unfinished, temporary files of killed processes, and empty folders of sweeps. Runs of this version
stay, interrupted ones too, which the same command goes on with; so does all that they read, and what is being written.
"""

from __future__ import annotations

from tabulate import tabulate

from nd.config.words import Words, verb_of_words
from nd.doctor.need import byte_text
from nd.errors import UserError
from nd.runs.cleaning import remove, unneeded


def clean(words: Words) -> int:
    """List what can go, and remove it where that was asked for; returns the exit code."""
    if words.bare:
        raise UserError(f"{words.bare[0]!r} is no option. `nd clean` lists, `nd clean apply=true` removes.")
    apply = words.switch("apply")
    found = unneeded(words.paths)
    if not found:
        print(f"nothing to clean in {words.paths.runs}, {words.paths.cache} and {words.paths.results}")
        return 0
    total = byte_text(sum(one.n_bytes for one in found))
    print(
        tabulate([[byte_text(one.n_bytes), one.why, one.path] for one in found], tablefmt="plain", colalign=("right",))
    )
    if not apply:
        print(f"{len(found)} of them, {total}. Nothing was removed: nd clean apply=true removes them.")
        return 0
    refused = 0
    for one in found:
        try:
            remove(one)
        except UserError as error:
            print(f"kept: {error}")
            refused += 1
    print(f"removed {len(found) - refused} of {len(found)}")
    return 1 if refused else 0


main = verb_of_words(clean, ("apply",))

if __name__ == "__main__":
    main(None)
