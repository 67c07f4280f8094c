"""A page to look at SAEs with: what their latents mean, how they form trees, and where they have holes."""
