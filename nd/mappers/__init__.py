"""Mappers: from a subject's voxels to one target, with everything learnt from training and validation images alone."""
