"""Small Stable-Diffusion-shaped backbones: training, export and loading."""
