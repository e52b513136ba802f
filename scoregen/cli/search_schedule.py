"""python -m scoregen.cli.search_schedule: a short noise schedule for a trained vocoder, and how to use it."""

import argparse
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path

from scoregen.cli.entry import DONE, run_entry
from scoregen.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_search, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.cli.search_schedule",
        description="Find a noise schedule of few steps for a model of sound, by its spectral error.",
    )
    parser.add_argument("--run", required=True, metavar="PATH", help="a run folder or a .safetensors file")
    parser.add_argument("--steps", type=int, default=6, help="of the schedule (default 6)")
    parser.add_argument("--trials", type=int, default=200, help="schedules to try (default 200)")
    parser.add_argument("--clips", type=int, default=4, help="test clips that each is tried on (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of schedules (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    return parser


def _search(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    for flag in ("steps", "trials", "clips"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    from scoregen.build import build_data
    from scoregen.cli.source import load_source
    from scoregen.diffusion.wavegrad import BetaGrid
    from scoregen.evaluation.processes import Alone
    from scoregen.evaluation.spectral import spectral_error
    from scoregen.parallel import Parallel
    from scoregen.rng import generator
    from scoregen.samplers.generate import DivergedError
    from scoregen.samplers.schedule_search import search_schedule
    from scoregen.samplers.wavegrad import WaveGradSampler

    device = Parallel(args.device).device
    source = load_source(Path(args.run), device)
    test = build_data(source.cfg, "test")

    def score(betas: tuple[float, ...]) -> float:
        sampler = WaveGradSampler(steps=len(betas), grid=BetaGrid(betas=betas))
        model, seeds, alone = source.denoiser, range(args.clips), Alone()
        try:
            return spectral_error(
                model, sampler, seeds, test, batch=args.clips, device=device, processes=alone
            ).value
        except DivergedError:
            return inf

    rng = generator("schedule", args.seed)
    betas, error = search_schedule(score, args.steps, trials=args.trials, rng=rng)
    if error == inf:
        raise UserError(f"--run {args.run}: with every schedule the samples diverged; train the model longer")
    text = ",".join(f"{beta:g}" for beta in betas)
    print(source.description)
    print(f"best of {args.trials} schedules: ls_mae {error:.3f} dB on {args.clips} clips")
    print(f"python sample.py --run {args.run} --sampler wavegrad_6 steps={args.steps} grid.betas=[{text}]")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
