"""The embedded world: drawn images, their captions, and simulated brains that see them."""
