"""What compares a run with stimuli: scores read and written, external images, brain correlation, decoded targets."""
