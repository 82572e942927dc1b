"""Reconstruct seen images from fMRI: several published methods under one data format, evaluation and command line."""

__version__ = "0.1.0"
