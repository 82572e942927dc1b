"""What compares with stimuli: external images, brain correlation, retrieval by decoded targets, sanity checks."""
