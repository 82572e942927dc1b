"""Training the network by Lightning: losses over all processes, two stages, checkpoints, curves."""
