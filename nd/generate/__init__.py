"""Targets to images: sampling guided by decoded features, simple generators, floors, and the work over devices."""
