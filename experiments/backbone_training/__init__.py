"""Training and export of small Stable-Diffusion-shaped backbones. Scripts that use it put experiments/ on the path."""
