"""Run folders, manifests, tables and reports: what was computed, from what, and how it compares."""
