"""Losses of the trained mapper, as pure functions of tensors.

Shapes: B samples of a step, F numbers of a flattened embedding.
"""
