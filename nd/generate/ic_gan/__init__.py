"""Instance-conditioned GAN (Casanova et al. 2021), by which Ozcelik et al. (IJCNN 2022) turn fMRI into images."""
