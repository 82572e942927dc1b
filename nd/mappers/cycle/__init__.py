"""Maps and voxels, each decoded from the other: SoulDiffuser's edge and colour decoders."""
