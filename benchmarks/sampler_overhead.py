"""What a solver step costs beyond the denoiser, side by side with diffusers' EDM Euler and Heun schedulers.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.sampler_overhead [--threads 1] [--rounds 15]

Every denoiser here returns one fixed tensor at once, so a run is overhead only: 18 steps, 256 x 3 x 32 x 32.
Rounds alternate between the libraries, so that all see the same load of the machine; medians of CPU time
count. Samplers that add noise draw it from one generator a sample; `torch.randn` draws as many numbers from
one generator, the least that any of them can cost.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from torch import Tensor

from scoregen.rng import SampleRng
from scoregen.samplers import SAMPLERS
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import EulerSampler, HeunSampler

STEPS, SHAPE = 18, (256, 3, 32, 32)
MULTISTEP = ("dpmpp_2m", "dpmpp_3m", "unipc", "lms", "deis")
NOISY = ("euler_ancestral", "dpmpp_2m_sde", "exponential", "predictor_corrector", "langevin")


class Constant:
    """A denoiser that costs nothing."""

    shape, num_classes, sigma_min, sigma_max = SHAPE[1:], 0, 0.0, float("inf")

    def __init__(self) -> None:
        self.value = torch.zeros(SHAPE)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.value


def ours(sampler: Sampler) -> Callable[[Tensor], object]:
    denoiser, rng = Constant(), SampleRng(range(SHAPE[0]))
    return lambda noise: sampler(denoiser, noise, None, rng)


def noise_alone() -> Callable[[Tensor], object]:
    generator = torch.Generator()
    return lambda noise: [torch.randn(SHAPE, generator=generator) for _ in range(STEPS)]


def diffusers_edm_euler() -> Callable[[Tensor], object]:
    from diffusers import EDMEulerScheduler

    scheduler, output = EDMEulerScheduler(sigma_data=0.5), torch.zeros(SHAPE)

    def run(noise: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x).prev_sample
        return x

    return run


def diffusers_heun() -> Callable[[Tensor], object]:
    from diffusers import HeunDiscreteScheduler

    scheduler, output = HeunDiscreteScheduler(use_karras_sigmas=True), torch.zeros(SHAPE)

    def run(noise: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x).prev_sample
        return x

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = {
        "scoregen euler": ours(EulerSampler(STEPS)),
        "diffusers euler": diffusers_edm_euler(),
        "scoregen heun": ours(HeunSampler(STEPS)),
        "scoregen heun, float64": ours(HeunSampler(STEPS, state_dtype="float64")),
        "diffusers heun": diffusers_heun(),
        **{f"scoregen {name}": ours(SAMPLERS[name](STEPS)) for name in MULTISTEP},
        "torch.randn": noise_alone(),
        **{f"scoregen {name}": ours(SAMPLERS[name](STEPS)) for name in NOISY},
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                start = process_time()
                run(noise)
                times[name].append((process_time() - start) * 1000 / STEPS)
    step = {name: median(values[1:]) for name, values in times.items()}
    print("| a step of | ms |\n|---|--:|")
    for name, milliseconds in step.items():
        print(f"| {name} | {milliseconds:.2f} |")
    for kind in ("euler", "heun"):
        print(f"diffusers / scoregen, {kind}: {step[f'diffusers {kind}'] / step[f'scoregen {kind}']:.1f}")
    for name in NOISY:
        print(f"scoregen {name} / torch.randn: {step[f'scoregen {name}'] / step['torch.randn']:.2f}")


if __name__ == "__main__":
    main()
