"""The trained network: subject layers, a trunk, and a head for each part of the target."""
