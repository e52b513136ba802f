"""Raw networks F(x, noise_labels, cond, augment_labels), each on samples of one shape.

To add a network: one subclass of `Network` with its five constructor arguments, one line here, one YAML file.
"""

from scoregen.networks.base import Network
from scoregen.networks.diffusers_unet import DiffusersUNet, ForeignUNet
from scoregen.networks.energy import EnergyDDPMpp, EnergyMLP
from scoregen.networks.mlp import MLP
from scoregen.networks.unet_adm import ADM
from scoregen.networks.unet_edm2 import EDM2
from scoregen.networks.unet_song import DDPMpp, NCSNpp
from scoregen.networks.wavegrad import WaveGrad

NETWORKS: dict[str, type[Network]] = {
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "edm2": EDM2,
    "mlp": MLP,
    "energy_mlp": EnergyMLP,
    "energy_ddpmpp": EnergyDDPMpp,
    "diffusers_unet": DiffusersUNet,
    "wavegrad": WaveGrad,
}

__all__ = [
    "ADM",
    "EDM2",
    "MLP",
    "NETWORKS",
    "DDPMpp",
    "DiffusersUNet",
    "EnergyDDPMpp",
    "EnergyMLP",
    "ForeignUNet",
    "NCSNpp",
    "Network",
    "WaveGrad",
]
