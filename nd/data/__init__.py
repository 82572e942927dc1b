"""Prepared data: two file formats, splits by image, scaling, readers of raw data sets. Knows nothing of models."""
