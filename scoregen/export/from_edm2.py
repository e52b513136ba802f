"""The networks of NVIDIA's EDM2 in this program's terms.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, arXiv
2312.02696, and the attributes that its code gives its networks.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen.errors import UserError
from scoregen.export.edm_pickle import Node

if TYPE_CHECKING:
    from scoregen.data.latents import LatentStats
    from scoregen.export.foreign import Foreign

KEPT = {
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "num_blocks": "num_blocks",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
}
# What the published networks leave at its default, and `EDM2` has no argument for.
FIXED: dict[str, Any] = {
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "resample_filter": [1, 1],
    "channels_per_head": 64,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}


def from_edm2(precond: Node, encoder: Node | None, path: Path, autoencoder: str | None) -> "Foreign":
    """The network of an EDM2 snapshot; its head for the learned uncertainty of training is left out.

    Args:
        precond: the entry `ema` of the file. encoder: its entry `encoder`, between images and samples.
        path: for messages. autoencoder: of a network of latents, whose file does not hold it.

    Raises:
        UserError: for a network of latents without its autoencoder, and for one that was built with options
            that `EDM2` has not.
    """
    from scoregen.export.foreign import Foreign
    from scoregen.model import ModelSpec

    network, facts = precond.state["_modules"]["unet"], precond.state
    arguments = network.state.get("_init_kwargs") or {}
    for name, value in FIXED.items():
        if arguments.get(name, value) != value:
            raise UserError(f"{path}: a network with {name}={arguments[name]} is not read, only {value}")
    given = {ours: arguments[theirs] for theirs, ours in KEPT.items() if theirs in arguments}
    sigma_data = float(facts["sigma_data"])
    shape = (int(facts["img_channels"]), int(facts["img_resolution"]), int(facts["img_resolution"]))
    codec, latents = _codec(encoder, path, autoencoder, shape[0], sigma_data)
    return Foreign(
        network={"_target_": "scoregen.networks.EDM2", **given},
        precond={"_target_": "scoregen.diffusion.precond.EDMPrecond", "sigma_data": sigma_data},
        spec=ModelSpec(shape, int(facts["label_dim"]), latents=latents),
        tensors={f"network.{name}": tensor.float() for name, tensor in network.tensors()},
        origin=f"{path.name}, {precond.name} of EDM2",
        codec=codec,
    )


def _codec(
    encoder: Node | None, path: Path, autoencoder: str | None, channels: int, std: float
) -> "tuple[dict[str, Any] | None, LatentStats | None]":
    """What `conf/codec` would say, and the whitening; None for a network of images.

    Their samples are scale y + bias of latents y, ours std (y - mean_c) / std_c.
    """
    if encoder is None or encoder.name == "StandardRGBEncoder":
        return None, None
    if encoder.name != "StabilityVAEEncoder":
        raise UserError(f"{path}: no counterpart of {encoder.name} here; known is StabilityVAEEncoder")
    name = encoder.state.get("vae_name", "its autoencoder")
    if autoencoder is None:
        raise UserError(
            f"{path}: this network draws latents of {name}, whose weights are not in the file: say "
            "where they are with --autoencoder, a folder of diffusers or owner/name on the hub"
        )
    from scoregen.data.autoencoder import Autoencoder
    from scoregen.data.latents import LatentStats

    scale, bias = (encoder.state[name].astype("float64") for name in ("scale", "bias"))
    known = Autoencoder(autoencoder, std=std, pixels="unit")
    network: Any = known.load()
    if network.config.latent_channels != channels:
        found = f"{autoencoder} has latents of {network.config.latent_channels} channels"
        raise UserError(f"--autoencoder: {found}, the network of {path} draws {channels}: give {name}")
    settings = {"path": autoencoder, "std": std, "pixels": "unit"}
    stats = LatentStats.of(known.sha256, (-bias / scale).tolist(), (std / scale).tolist())
    return {"_target_": "scoregen.data.autoencoder.Autoencoder", **settings}, stats
