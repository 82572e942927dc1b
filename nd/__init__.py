"""Reconstruct seen images from fMRI: one data format, one evaluation and one command line for several published methods."""

__version__ = "0.1.0"
