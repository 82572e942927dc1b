"""Tables: their specs, the rows found by identity, sanity checks, files, plots and pages, and views in loggers."""
