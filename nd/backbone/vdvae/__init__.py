"""A very deep VAE of small images (Child, ICLR 2021, arXiv:2011.10650), shaped to take OpenAI's published weights."""
