"""SoulDiffuser's sampling: a frozen UNet steered by an edge map and a colour mosaic."""
