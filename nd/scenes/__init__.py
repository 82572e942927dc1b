"""The embedded world: drawn pictures, their captions, and simulated brains that see them."""
