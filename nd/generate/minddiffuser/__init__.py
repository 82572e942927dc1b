"""MindDiffuser (Lu et al., ACM MM 2023): image-to-image diffusion, its inputs optimised through the whole sampler."""
