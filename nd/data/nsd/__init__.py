"""Reader of the Natural Scenes Dataset as its authors publish it: design, stimuli, ROI volumes, single-trial betas."""
