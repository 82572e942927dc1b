"""`nd table`: the scores of a table's rows beside each other, as text and as md, csv and tex files.

Without a table (`table=`) it is that of whatever is composed: the method, the same with true features and with shuffled
voxels, and floors. With `check=true` the scores are compared with the expected values of the spec; the exit code is 1
when they differ.
"""

from __future__ import annotations

from pathlib import Path

from nd.config import Config
from nd.config.application import derive, verb
from nd.doctor.absent import refuse_absent
from nd.runs.folder import RunFolder, command_for
from nd.tables.formats import text, write_table
from nd.tables.loggers import check_logger, log_table
from nd.tables.specs import DEFAULT, expand, shown_rows, spec_of
from nd.tables.table import Table, collect, unexpected


def read_table(cfg: Config) -> Table:
    """Return the table that ``table=`` names, or that of what is composed, from its finished runs."""
    spec = spec_of(cfg)
    command = command_for(cfg, "run", f"table={cfg.table or DEFAULT}")
    entries = expand(spec, cfg, derive)
    refuse_absent([entry.cfg for entry in entries if not RunFolder.open(entry.cfg, "evaluate").done])
    return collect(spec, entries, command)


def table(cfg: Config) -> int:
    """Write the table's files and print it; returns the exit code."""
    check_logger(cfg)
    made = read_table(cfg)
    written = write_table(made, Path(cfg.paths.results))  # first: the reader of a pipe may leave in the middle
    print(text(made))
    for path in written:
        print(f"wrote {path}")
    log_table(cfg, made, written)
    return compare(made) if cfg.check else 0


def compare(made: Table) -> int:
    """Print what differs from the expected values; returns 1 when anything does."""
    differing = unexpected(made)
    compared = sum(len(scores) for scores in made.spec.expected.values())
    if differing:
        print(f"{len(differing)} of {compared} scores differ from those expected:")
        print("\n".join(f"  {line}" for line in differing))
        return 1
    print(f"all {compared} scores are as expected, within {made.spec.tolerance}")
    return 0


main = verb(table, rows=shown_rows)

if __name__ == "__main__":
    main()
