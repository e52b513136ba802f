"""The networks of NVIDIA's EDM in this program's terms.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv
2206.00364, and the attributes that its code gives its networks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen.errors import UserError
from scoregen.export.edm_pickle import Node, read_network
from scoregen.export.from_edm2 import from_edm2

if TYPE_CHECKING:
    from scoregen.export.foreign import Foreign

# Class of the preconditioning: our class, and our names of its attributes.
PRECONDS: dict[str, tuple[str, dict[str, str]]] = {
    "EDMPrecond": ("EDMPrecond", {"sigma_data": "sigma_data"}),
    "VPPrecond": (
        "VPPrecond",
        {"beta_d": "beta_d", "beta_min": "beta_min", "epsilon_t": "epsilon_t", "M": "levels"},
    ),
    "VEPrecond": ("VEPrecond", {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
    "iDDPMPrecond": ("IDDPMPrecond", {"C_1": "c1", "C_2": "c2", "M": "levels"}),
}
# What tells the builds of SongUNet from one another.
SONG_BUILDS: dict[tuple[Any, ...], str] = {
    ("positional", "standard", (1, 1)): "DDPMpp",
    ("fourier", "residual", (1, 3, 3, 1)): "NCSNpp",
}
RENAMED = {"attn_resolutions": "attention_resolutions"}
KEPT = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")


def from_edm(path: Path, key: str = "ema", autoencoder: str | None = None) -> "Foreign":
    """The network under `key` in a pickle, of EDM2 too; UserError for one that has no counterpart here."""
    from scoregen.export.foreign import Foreign
    from scoregen.model import ModelSpec

    precond, encoder = read_network(path, key)
    if isinstance(precond.state["_modules"].get("unet"), Node):
        return from_edm2(precond, encoder, path, autoencoder)
    network = precond.state["_modules"].get("model")
    if not isinstance(network, Node):
        raise UserError(f"{path}: {precond.name} holds no network 'model'")
    arguments = network.state.get("_init_kwargs") or {}
    facts = precond.state
    shape = (int(facts["img_channels"]), int(facts["img_resolution"]), int(facts["img_resolution"]))
    tensors = {f"network.{name}": tensor.float() for name, tensor in network.tensors()}
    return Foreign(
        network=_network(network.name, arguments, path),
        precond=_precond(precond, path),
        spec=ModelSpec(shape, int(facts.get("label_dim", 0)), int(arguments.get("augment_dim", 0))),
        tensors=tensors,
        origin=f"{path.name}, {precond.name} of {network.name}",
    )


def _network(name: str, arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `conf/network` would say."""
    build: tuple[Any, ...] = (name,)
    target = {"DhariwalUNet": "ADM"}.get(name)
    if name == "SongUNet":
        build = (
            arguments.get("embedding_type", "positional"),
            arguments.get("encoder_type", "standard"),
            tuple(arguments.get("resample_filter", (1, 1))),
        )
        target = SONG_BUILDS.get(build)
    if target is None:
        raise UserError(f"{path}: a {name} of the form {build} has no counterpart here; known are {_known()}")
    given = {key: arguments[key] for key in KEPT if key in arguments}
    plain = {RENAMED.get(k, k): list(v) if isinstance(v, list | tuple) else v for k, v in given.items()}
    return {"_target_": f"scoregen.networks.{target}", **_defaults(name), **plain}


def _known() -> str:
    return f"DhariwalUNet and SongUNet as {' or '.join(map(str, SONG_BUILDS))}"


def _defaults(name: str) -> dict[str, Any]:
    """The defaults of EDM's constructors where ours differ."""
    if name == "SongUNet":
        return {"channel_mult": [1, 2, 2, 2], "dropout": 0.1}
    return {"channel_mult": [1, 2, 3, 4], "attention_resolutions": [32, 16, 8], "dropout": 0.1}


def _precond(node: Node, path: Path) -> dict[str, Any]:
    """What `conf/precond` would say."""
    if node.name not in PRECONDS:
        raise UserError(f"{path}: no counterpart of {node.name} here; known are {', '.join(PRECONDS)}")
    target, names = PRECONDS[node.name]
    values = {ours: node.state[theirs] for theirs, ours in names.items()}
    return {"_target_": f"scoregen.diffusion.precond.{target}", **values}
