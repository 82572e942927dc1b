"""Targets: what mappers learn to predict, one extractor per target, and the store that holds the features."""
