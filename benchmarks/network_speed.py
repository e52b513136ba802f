"""Training step and inference of a DDPM++ beside the U-Nets of other libraries, each in the same loop.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.network_speed [--rounds 3] [--batch 8] [--device cpu]
           [--precisions fp32 bf16] [--threads 1] [--compile]

3 x 32 x 32, widths 64, 128 and 128, two residual blocks a level, attention at 16 x 16. A step is noise,
forward, squared error, backward, fused Adam and an average of the weights. Libraries differ in their blocks,
so equal work is compared: FLOPs of matrix products, convolutions and attention a second, three forwards for
a training image. Steps are interleaved, medians of CPU seconds (on a GPU wall time) printed; ratios are to
diffusers at the same precision. A library that is not installed is named with the command that installs it.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleaved import median_seconds
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import EDMPrecond
from scoregen.machine import machine_name
from scoregen.networks import DDPMpp

SHAPE, WIDTHS, LEVELS, BLOCKS = (3, 32, 32), (64, 128, 128), (1, 2, 2), 2
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Noised(nn.Module):
    """A peer's network as a function of x [B, 3, 32, 32] and sigma [B], under autocast of `dtype`."""

    def __init__(
        self, network: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network, self.call, self.dtype = network, call, dtype

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.call(self.network, x, sigma.log())
        return out.to(x.dtype)


def scoregen(precision: str) -> nn.Module:
    network = DDPMpp(
        resolution=32,
        channels=3,
        model_channels=WIDTHS[0],
        channel_mult=LEVELS,
        num_blocks=BLOCKS,
        attention_resolutions=(16,),
    )
    return NetworkDenoiser(network, EDMPrecond(), shape=SHAPE, precision=precision)


def diffusers(precision: str) -> nn.Module:
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=32,
        block_out_channels=WIDTHS,
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return Noised(network, lambda net, x, t: net(x, t).sample, PRECISIONS[precision])


def azula(precision: str) -> nn.Module:
    """Without attention, which its U-Net has none of; modulated by two linear layers of log sigma."""
    from azula.nn.unet import UNet

    unet = UNet(3, 3, hid_channels=WIDTHS, hid_blocks=(BLOCKS + 1,) * 3, mod_features=256, norm="group")
    embed = nn.Sequential(nn.Linear(1, 256), nn.SiLU(), nn.Linear(256, 256))
    network = nn.ModuleDict({"unet": unet, "embed": embed})
    return Noised(network, lambda net, x, t: net["unet"](x, net["embed"](t[:, None])), PRECISIONS[precision])


def torchcfm(precision: str) -> nn.Module:
    from torchcfm.models.unet import UNetModel

    network = UNetModel(SHAPE, WIDTHS[0], BLOCKS, channel_mult=LEVELS, attention_resolutions="16")
    return Noised(network, lambda net, x, t: net(t, x), PRECISIONS[precision])


def denoising_diffusion_pytorch(precision: str) -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    network = Unet(WIDTHS[0], dim_mults=LEVELS, full_attn=(False, True, False))
    return Noised(network, lambda net, x, t: net(x, t), PRECISIONS[precision])


LIBRARIES = (scoregen, diffusers, azula, torchcfm, denoising_diffusion_pytorch)


def installed() -> Iterator[Callable[[str], nn.Module]]:
    """The libraries that can be imported; names the others."""
    for library in LIBRARIES:
        if find_spec(library.__name__):
            yield library
        else:
            print(f"{library.__name__}: not installed: pip install {library.__name__.replace('_', '-')}")


def training_step(model: nn.Module, x0: Tensor, sigma: Tensor) -> Callable[[], None]:
    """One step from noise to averaged weights."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator(x0.device).manual_seed(0)

    def step() -> None:
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        loss = (model(x0 + sigma[:, None, None, None] * noise, sigma) - x0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)

    return step


def inference(model: nn.Module, x: Tensor, sigma: Tensor) -> Callable[[], Tensor]:
    """One evaluation without gradients."""

    @torch.no_grad()
    def evaluate() -> Tensor:
        return model(x, sigma)

    return evaluate


def image_gflops(model: nn.Module, x: Tensor, sigma: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:2], sigma[:2])
    return counter.get_total_flops() / 2e9


def table(
    title: str, models: dict[str, nn.Module], gflops: dict[str, float], rates: dict[str, float]
) -> None:
    """Print images a second, and work a second beside diffusers'."""
    print(f"\n| {title} | parameters | GFLOP an image | img/s | GFLOP/s | x diffusers |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, rate in rates.items():
        base = f"diffusers {name.split()[1]}"
        work = gflops[name] * rate
        size = sum(p.numel() for p in models[name].parameters()) / 1e6
        print(
            f"| {name} | {size:.1f} M | {gflops[name]:.2f} | {rate:.1f} | {work:.1f} "
            f"| {work / (gflops[base] * rates[base]):.2f} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=list(PRECISIONS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also scoregen compiled")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    print(f"{machine_name(device)}, batch {args.batch}, {args.rounds} rounds")
    libraries = list(installed())
    models = {f"{lib.__name__} {p}": lib(p).to(device) for p in args.precisions for lib in libraries}
    x, sigma = torch.rand(args.batch, *SHAPE, device=device) * 2 - 1, torch.ones(args.batch, device=device)
    gflops = {name: image_gflops(model, x, sigma) for name, model in models.items()}
    for name in [name for name in models if args.compile and name.startswith("scoregen")]:
        compiled = scoregen(name.split()[1]).to(device)
        compiled.network.compile()
        models[f"{name} compiled"], gflops[f"{name} compiled"] = compiled, gflops[name]
    for title, work, passes in (("training step", training_step, 3), ("inference", inference, 1)):
        seconds = median_seconds({n: work(m, x, sigma) for n, m in models.items()}, args.rounds, device)
        rates = {name: args.batch / s for name, s in seconds.items()}
        table(title, models, {name: passes * count for name, count in gflops.items()}, rates)


if __name__ == "__main__":
    main()
