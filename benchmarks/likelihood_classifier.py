"""Samples by class from one unconditional model and several classifiers: cross-entropy beside score matching.

usage: python -m benchmarks.likelihood_classifier PRIOR CLASSIFIER [CLASSIFIER ...] [--weights 1,2]
           [--num 40] [--repeats 3]

For each classifier and weight, over `repeats` seed ranges of `num` samples a class:
  accuracy     share of samples that a network trained on clean real images takes for the class asked for
  CAS          accuracy on real test images of such a network trained on the samples
  CW fd        fd_scatter class by class, the mean over classes
  fd           fd_scatter of all samples
and once, on the test split, paired:
  score error  the mean over elements of sigma^2 (grad log q + s + n / sigma)^2 / 2, less the smallest of the
               classifiers, since all share what no classifier explains
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from scoregen import config
from scoregen.build import build_data
from scoregen.cli.source import load_judge, load_source
from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.guidance import ClassifierGuidance
from scoregen.diffusion.noise import LogUniformSigma
from scoregen.evaluation.classwise import evaluate_classes
from scoregen.evaluation.evaluator import Evaluator
from scoregen.images import to_uint8
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.parallel import Parallel
from scoregen.rng import BatchRng, generator
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.generate import generate

SAMPLER = HeunSampler(steps=18)
BATCH = 250
COLUMNS = ("accuracy", "CAS", "CW fd", "fd")


def fit_network(x: Tensor, label: Tensor, classes: int) -> nn.Module:
    """A perceptron trained on images x [N, C, H, W] in [-1, 1] with a little noise."""
    g = generator("clean", len(x))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 256), nn.ReLU(), nn.Linear(256, classes))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(1500):
        rows = torch.randint(len(x), (128,), generator=g)
        noisy = x[rows] + 0.1 * torch.randn(x[rows].shape, generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(noisy), label[rows]).backward()
        optimizer.step()
    return net


def accuracy(net: nn.Module, x: Tensor, label: Tensor) -> float:
    """The share of images that the network classifies as labelled."""
    return float((net(x).argmax(1) == label).float().mean())


def score_error(prior: Denoiser, judge: nn.Module, x: Tensor, label: Tensor) -> float:
    """The score-matching term on images x [N, C, H, W], 16 draws each, the same for every classifier."""
    loss = LikelihoodScoreLoss(prior, LogUniformSigma(0.01, 10.0), cross_entropy=0.0)
    draws = [loss(judge, x, label, BatchRng("test", k, size=len(x))).value.detach() for k in range(16)]
    return float(torch.cat(draws).mean())


class Bench:
    """The real data, what judges samples, and the samples of one repeat."""

    def __init__(self, classifier: Path, num: int) -> None:
        cfg = config.from_yaml((classifier / "config.yaml").read_text(), str(classifier))
        self.train, test = build_data(cfg, "train"), build_data(cfg, "test")
        assert isinstance(self.train, ArrayDataset)
        assert isinstance(test, ArrayDataset)
        assert self.train.label is not None
        assert test.label is not None
        self.classes, self.num, self.parallel = self.train.num_classes, num, Parallel("cpu")
        self.x_test, self.label_test = to_model_range(test.x), test.label
        self.clean = fit_network(to_model_range(self.train.x), self.train.label, self.classes)
        self.evaluator = Evaluator(["fd_scatter"], self.train)

    def __call__(self, guided: Denoiser, repeat: int) -> dict[str, float]:
        """The columns for one repeat of one guided model."""
        seeds = range(repeat * self.num, (repeat + 1) * self.num)
        x = torch.cat([self.draw(guided, seeds, label) for label in range(self.classes)])
        label = torch.arange(self.classes).repeat_interleave(self.num)
        by_class = evaluate_classes(
            ["fd_scatter"], self.train, guided, SAMPLER, seeds, batch=BATCH, parallel=self.parallel
        )
        return {
            "accuracy": accuracy(self.clean, x, label),
            "CAS": accuracy(fit_network(x, label, self.classes), self.x_test, self.label_test),
            "CW fd": mean(result["fd_scatter"].value for result in by_class),
            "fd": self.evaluator(to_uint8(x).split(BATCH))["fd_scatter"].value,
        }

    def draw(self, guided: Denoiser, seeds: range, label: int) -> Tensor:
        """The samples of one class, clipped to [-1, 1]."""
        drawn = generate(guided, SAMPLER, seeds, batch=BATCH, device="cpu", label=label)
        return torch.cat([samples.x for samples in drawn]).clamp(-1, 1)


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prior", type=Path, help="run of the unconditional model")
    parser.add_argument("classifiers", type=Path, nargs="+", help="runs of classifiers")
    parser.add_argument("--weights", default="1", help="guidance weights")
    parser.add_argument("--num", type=int, default=40, help="samples a class and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cpu = torch.device("cpu")
    prior, bench = load_source(args.prior, cpu).denoiser, Bench(args.classifiers[0], args.num)
    judges = {path.name: load_judge(path, cpu) for path in args.classifiers}
    errors = {
        name: score_error(prior, judge, bench.x_test, bench.label_test) for name, judge in judges.items()
    }
    print(f"| classifier | weight | {' | '.join(COLUMNS)} | score error |\n|---|" + "--:|" * 6)
    print(f"| real images | | | {accuracy(bench.clean, bench.x_test, bench.label_test):.3f} | | | |")
    for name, judge in judges.items():
        for weight in map(float, args.weights.split(",")):
            rows = [bench(ClassifierGuidance(prior, judge, weight), k) for k in range(args.repeats)]
            cells = [[row[column] for row in rows] for column in COLUMNS]
            text = " | ".join(f"{mean(values):.3g} ± {stdev(values):.2g}" for values in cells)
            error = errors[name] - min(errors.values())
            print(f"| {name} | {weight:g} | {text} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
