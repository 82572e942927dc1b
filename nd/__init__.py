"""Reconstruct seen images from fMRI: several published methods under one data format, evaluation and command line."""

from nd.threads import set_up_threads

__version__ = "0.1.0"

set_up_threads()  # here, because it must come before PyTorch, and whatever uses nd imports this first
