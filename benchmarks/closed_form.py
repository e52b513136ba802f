"""The training set as a denoiser: speed beside the usual routes, and what the estimators cost and miss.

    SCOREGEN_DATA=DIR OMP_NUM_THREADS=1 python benchmarks/closed_form.py [--batch 256] [--rounds 3] [--faiss]

CIFAR-10's 50,000 training images; queries are training images plus noise. CPU seconds, routes interleaved,
medians. Errors are against float64, root mean square and largest over the pixels of --exact queries. The
estimators run on fewer queries, over --repeats independent draws.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.data.cifar10 import load_cifar10
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.neighbours import ImportanceDenoiser, NeighbourDenoiser, NeighbourEstimate
from scoregen.rng import BatchRng, generator

Route = Callable[[Tensor, float], Tensor]


def queries(data: Tensor, count: int, sigma: float) -> Tensor:
    g = generator("queries", count)
    x = to_model_range(data[torch.randint(len(data), (count,), generator=g)])
    return x + sigma * torch.randn(x.shape, generator=g)


def routes(data: Tensor, with_faiss: bool) -> dict[str, Route]:
    """What is compared; the plain ones hold the data in float32."""
    rows = to_model_range(data).flatten(1)
    squares = rows.square().sum(1)
    ours = EmpiricalDenoiser(data)
    in_floats = EmpiricalDenoiser(to_model_range(data))
    for denoiser in (ours, in_floats):
        denoiser.rows  # noqa: B018 - made outside the measured time

    def cdist(x: Tensor, sigma: float) -> Tensor:
        weights = (torch.cdist(x.flatten(1), rows).square() / (-2 * sigma**2)).softmax(1)
        return (weights @ rows).view_as(x)

    def gemm(x: Tensor, sigma: float) -> Tensor:
        weights = ((x.flatten(1) @ rows.T - squares / 2) / sigma**2).softmax(1)
        return (weights @ rows).view_as(x)

    found: dict[str, Route] = {
        "cdist + softmax + matmul": cdist,
        "float32 products": gemm,
        "scoregen, levels": lambda x, sigma: ours(x, torch.tensor(sigma)),
        "scoregen, floats": lambda x, sigma: in_floats(x, torch.tensor(sigma)),
    }
    if with_faiss:
        found["faiss Flat, k = 100"] = faiss_route(rows)
    return found


def faiss_route(rows: Tensor) -> Route:
    import faiss

    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.numpy())

    def route(x: Tensor, sigma: float) -> Tensor:
        squares, indices = index.search(x.flatten(1).numpy(), 100)
        weights = (torch.from_numpy(squares) / (-2 * sigma**2)).softmax(1)
        return (weights[:, None] @ rows[torch.from_numpy(indices)])[:, 0].view_as(x)

    return route


def speed(data: Tensor, args: argparse.Namespace) -> None:
    """One row for every noise level: posterior means a second, ratios and errors."""
    compared = routes(data, args.faiss)
    exact = EmpiricalDenoiser(data)
    print("posterior means a second (ratio of scoregen on levels to it; error rms, largest)")
    print("sigma", *compared, sep=" | ")
    for sigma in args.sigmas:
        x = queries(data, args.batch, sigma)
        truth = exact(x[: args.exact].double(), torch.tensor(sigma, dtype=torch.float64))
        seconds: dict[str, list[float]] = {name: [] for name in compared}
        denoised = {}
        for _ in range(args.rounds):
            for name, route in compared.items():
                start = time.process_time()
                denoised[name] = route(x, sigma)
                seconds[name].append(time.process_time() - start)
        cells = [f"{sigma:g}"]
        base = median(seconds["scoregen, levels"])
        for name in compared:
            error = (denoised[name][: args.exact] - truth).abs()
            rms, worst = float(error.square().mean().sqrt()), float(error.max())
            taken = median(seconds[name])
            cells.append(f"{args.batch / taken:.0f} ({taken / base:.1f}; {rms:.0e}, {worst:.0e})")
        print(" | ".join(cells), flush=True)


def estimators(data: Tensor, args: argparse.Namespace) -> None:
    """Time, bias and standard deviation of the estimators, relative to the data's spread about their mean."""
    exact = EmpiricalDenoiser(data)
    chosen: dict[str, NeighbourEstimate] = {
        "K 200": NeighbourDenoiser(exact, neighbours=200, others=0),
        "K 200 + L 200": NeighbourDenoiser(exact, neighbours=200, others=200),
        "importance, K 200, R 200": ImportanceDenoiser(exact, neighbours=200, draws=200),
    }
    print("\nroot mean square bias, standard deviation (time relative to the exact mean)")
    print("sigma", *chosen, sep=" | ")
    for sigma in args.sigmas:
        x, level = queries(data, args.exact, sigma), torch.tensor(sigma)
        truth = exact(x, level)
        start = time.process_time()
        exact(x, level)
        base, cells = time.process_time() - start, [f"{sigma:g}"]
        for name, estimator in chosen.items():
            start = time.process_time()
            draws = [
                estimator.for_trajectory(BatchRng(name, i, size=len(x)))(x, level)
                for i in range(1 if name == "K 200" else args.repeats)
            ]
            taken = (time.process_time() - start) / len(draws)
            error = torch.stack(draws) - truth
            bias, spread = error.mean(0).square().mean().sqrt(), error.var(0, correction=0).mean().sqrt()
            cells.append(f"{float(bias):.0e}, {float(spread):.0e} ({taken / base:.1f})")
        print(" | ".join(cells), flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--faiss", action="store_true", help="compare with faiss, where it is installed")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.05, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 80])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_cifar10().x
    speed(data, args)
    estimators(data, args)


if __name__ == "__main__":
    main()
