"""`nd report`: a table with its images and plots as one self-contained HTML page, and a PNG grid beside it."""

from __future__ import annotations

from pathlib import Path

from nd.config import Config
from nd.config.application import verb
from nd.runs.folder import command_for
from nd.table import read_table
from nd.tables.learning_curves import learning_of
from nd.tables.specs import shown_rows


def report(cfg: Config) -> None:
    """Write the page and the grid of the table that ``table=`` names."""
    from nd.tables.report import write_report  # loads matplotlib

    table = read_table(cfg)
    command = " && ".join(command_for(cfg, name) for name in ("run", "table", "report"))
    for path in write_report(table, Path(cfg.paths.results), command, learning_of(table)):
        print(f"wrote {path}")


main = verb(report, rows=shown_rows)

if __name__ == "__main__":
    main()
