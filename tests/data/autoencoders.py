"""Tiny autoencoders with random weights, in folders as diffusers saves them."""

from pathlib import Path

import torch


def save_autoencoder(folder: Path, *, channels: int = 1, latents: int = 2, seed: int = 0) -> Path:
    """An AutoencoderKL with `latents` channels that halves images; random, its posteriors narrow."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=latents,
            norm_num_groups=4,
            sample_size=8,
        )
    with torch.no_grad():
        network.quant_conv.bias[latents:] = -4  # of the logarithm of the variance
    network.save_pretrained(folder)
    return folder
