"""How far each score matching objective ends from the true score, on data whose score is known.

    OMP_NUM_THREADS=1 python -m benchmarks.score_error [--write docs/score_matching.md] [--rows lcss,ssm]

Data: four Gaussians of standard deviation 0.15 in the plane, sigma_data 0.5, fresh samples each step. Every
row trains the same MLP from the same weights on the same points: 1,000 steps of 256, Adam, learning rate 2e-3
that falls to 0 over the second half, average of weights. The error is E[sigma^2 ||s - s_true||^2] over noisy
points of 20,000 fresh samples; mean and standard deviation over three seeds, CPU time of one training on one
core. --write puts the table between the markers of a page and the picture beside it.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks.pages import write_section
from scoregen import config
from scoregen.build import ModelSpec, build_denoiser
from scoregen.data.toys import load_mixture, ring_means
from scoregen.denoisers.base import score
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.rng import BatchRng, generator
from scoregen.training.ema import HalfLifeEMA

MODES, STD = 4, 0.15
STEPS, BATCH, RATE, SEEDS = 1000, 256, 2e-3, (0, 1, 2)
LEVELS = (0.05, 0.2, 1.0, 5.0)
ROWS: Mapping[str, Sequence[str]] = {
    "denoising, lambda of EDM": ["objective=denoising"],
    "denoising, 1 / sigma^2": [
        "objective=denoising_vp",
        "objective.sigma={_target_: scoregen.diffusion.noise.LogNormalSigma}",
    ],
    "implicit, exact trace": ["objective=implicit"],
    "ssm, Gaussian": ["objective=ssm"],
    "ssm_vr, Gaussian": ["objective=ssm_vr", "objective.direction=gaussian"],
    "ssm_vr, signs": ["objective=ssm_vr"],
    "fd_ssm 0.1": ["objective=fd_ssm"],
    **{
        f"lcss plain {r}": ["objective=lcss", "objective.estimator=plain", f"objective.width={r}"]
        for r in (0.03, 0.1, 0.3, 0.7)
    },
    **{f"lcss {r}": ["objective=lcss", f"objective.width={r}"] for r in (0.03, 0.1, 0.3)},
    "lcss antithetic 0.1": ["objective=lcss", "objective.estimator=antithetic"],
    **{
        f"lcss norm at x' {r}": [
            "objective=lcss", "objective.estimator=plain", "objective.norm_at=xprime", f"objective.width={r}",
        ]
        for r in (0.1, 0.3)
    },
}  # fmt: skip
NETWORK = ["data=mixture", "network=mlp", "network.width=64", "network.depth=2"]


@dataclass(frozen=True)
class Result:
    """One training."""

    denoiser: NetworkDenoiser
    errors: list[float]  # at LEVELS
    seconds: float


def truth() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(ring_means(MODES, STD).float(), torch.tensor(STD**2))


def train(options: Sequence[str], seed: int) -> Result:
    """Train one model and measure it."""
    cfg, problems = config.compose([*NETWORK, *options, f"seed={seed}"])
    config.refuse(problems)
    data = load_mixture(components=MODES, std=STD, size=STEPS * BATCH, seed=seed)
    denoiser, objective = build_denoiser(cfg, ModelSpec((2,))), config.instantiate(cfg.objective)
    optimizer = torch.optim.Adam(denoiser.parameters(), RATE)
    ema = HalfLifeEMA(100 * BATCH).attach(denoiser)
    start = time.process_time()
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, 2 * (1 - step / STEPS))
        x0 = data.x[step * BATCH : (step + 1) * BATCH]
        loss = objective(denoiser, x0, None, BatchRng(seed, "step", step, size=BATCH)).value.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(nimg=step * BATCH, batch=BATCH)
    seconds = time.process_time() - start
    ema.copy_to(denoiser)
    return Result(denoiser, [error(denoiser, level) for level in LEVELS], seconds)


@torch.no_grad()
def error(denoiser: NetworkDenoiser, sigma: float) -> float:
    """E[sigma^2 ||s - s_true||^2] at one noise level."""
    x0 = load_mixture(components=MODES, std=STD, size=20_000, split="test").x
    level = torch.full((len(x0),), sigma)
    x = x0 + sigma * torch.randn(x0.shape, generator=generator("score_error"))
    gap = score(denoiser, x, level) - score(truth(), x, level)
    return float(sigma**2 * gap.square().sum(1).mean())


def row(name: str, results: Sequence[Result]) -> str:
    """A line of the table."""
    columns = zip(*(result.errors for result in results), strict=True)
    cells = [f"{1000 * mean(values):.1f} ± {1000 * stdev(values):.1f}" for values in columns]
    return f"| {name} | {' | '.join(cells)} | {mean(result.seconds for result in results) / 60:.2f} |"


def picture(models: Mapping[str, NetworkDenoiser], path: Path, sigma: float = 0.2) -> None:
    """Draw the true score and each model's, arrows over the error's size on a logarithmic scale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    figure, axes = plt.subplots(2, (len(models) + 2) // 2, figsize=(11, 6.2), layout="constrained")
    exact, level = truth(), torch.tensor(sigma)
    fine, coarse = plane(81), plane(17)
    for ax, (name, model) in zip(axes.flat, {"true score": exact, **models}.items(), strict=False):
        with torch.no_grad():
            gap = (score(model, fine, level) - score(exact, fine, level)).norm(dim=1) * sigma
            arrows = score(model, coarse, level)
        image = ax.imshow(
            gap.clamp(min=3e-3).reshape(81, 81).T, origin="lower", extent=(-1.2, 1.2, -1.2, 1.2),
            cmap="magma", norm=LogNorm(3e-3, 1),
        )  # fmt: skip
        ax.quiver(*coarse.T, *arrows.T, color="white", width=0.004)
        ax.set(title=name, xticks=[], yticks=[])
    for ax in axes.flat[len(models) + 1 :]:
        ax.remove()
    figure.colorbar(image, ax=axes, label=r"$\sigma\,\Vert s - s_{true}\Vert$", shrink=0.8)
    figure.savefig(path, dpi=64)


def plane(count: int) -> Tensor:
    """A grid [count^2, 2] over the data."""
    line = torch.linspace(-1.2, 1.2, count)
    return torch.cartesian_prod(line, line)


PICTURED = (
    "denoising, lambda of EDM",
    "implicit, exact trace",
    "ssm_vr, signs",
    "lcss plain 0.1",
    "lcss 0.1",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--rows", metavar="PREFIX,...", help="only rows whose name begins so")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = tuple((args.rows or "").split(","))
    names = [name for name in ROWS if name.startswith(wanted)]
    lines = [
        f"| objective | {' | '.join(f'sigma {level:g}' for level in LEVELS)} | CPU minutes |",
        "|---" + "|--:" * (len(LEVELS) + 1) + "|",
    ]
    models = {}
    for name in names:
        results = [train(ROWS[name], seed) for seed in SEEDS]
        models[name] = results[0].denoiser
        lines.append(row(name, results))
        print(lines[-1], flush=True)
    if args.write:
        write_section(args.write, "score_error", "\n".join(lines))
        shown = {name: models[name] for name in PICTURED if name in models}
        picture(shown, args.write.parent / "images" / "score_matching.png")


if __name__ == "__main__":
    main()
