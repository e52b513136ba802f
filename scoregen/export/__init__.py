"""Out to a diffusers pipeline, in from the weights of other programs."""
