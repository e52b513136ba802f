"""scoregen: train, sample, distil and judge diffusion score models. Every model is a denoiser D(x, sigma)."""

__version__ = "0.1.0"
