"""Run folders: identity, manifests, locks, and the chain of steps that fills them."""
