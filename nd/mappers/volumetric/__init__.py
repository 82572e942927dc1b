"""The volumetric encoder: voxels with their places on the grid to tokens, mixed, and read out into the shared space."""
