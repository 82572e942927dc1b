"""Small Stable-Diffusion-shaped backbones: loading, and what is read from them."""
