"""Tables: their specs, the rows found by identity, the files, plots and pages made of them, and views in loggers."""
