"""Out-of-distribution detection from norms of the score at several noise levels.

python -m scoregen.detection.msma fit --run runs/mnist_edm --out mnist.msma
python -m scoregen.detection.msma score mnist.msma --outliers fashion_mnist,kmnist,uniform
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.denoisers.base import Cond, Denoise, as_sigma
from scoregen.detection.base import Detector
from scoregen.detection.command import (
    add_model_flags,
    check_same_model,
    check_sets,
    choose_model,
    draw_images,
    held_out,
    load_set,
    print_table,
)
from scoregen.detection.flow import FlowDetector
from scoregen.detection.mixture import MixtureDetector
from scoregen.detection.neighbours import NeighbourDetector
from scoregen.detection.roc import Separation, separate
from scoregen.errors import UserError

DETECTORS: dict[str, type[Detector]] = {
    "gmm": MixtureDetector,
    "flow": FlowDetector,
    "knn": NeighbourDetector,
}
LEVELS = (2.0, 0.02, 10)  # highest, lowest, how many: 1 to 0.01 of the source, for images in [0, 1]


def score_norms(denoiser: Denoise, x: Tensor, sigmas: Sequence[float], cond: Cond = None) -> Tensor:
    """eta_i(x) = sigma_i ||s(x; sigma_i)|| = ||D(x; sigma_i) - x|| / sigma_i, [B, L] float64.

    x [B, *shape] is taken as it is: no noise is added.

    Source: Mahmood, Oliva and Styner, Multiscale Score Matching for Out-of-Distribution Detection, 2021,
    arXiv 2010.13132.
    """
    norms = [
        (denoiser(x, as_sigma(sigma, x), cond).double() - x.double()).flatten(1).norm(dim=1) / sigma
        for sigma in sigmas
    ]
    return torch.stack(norms, 1)


@torch.no_grad()
def norms_of(
    denoiser: Denoise, images: Tensor, sigmas: Sequence[float], *, batch: int, device: torch.device | str
) -> Tensor:
    """`score_norms` of images [n, *shape] on the CPU, in batches, on the CPU again: [n, L]."""
    return torch.cat([score_norms(denoiser, x.to(device), sigmas).cpu() for x in images.split(batch)])


def geometric(high: float, low: float, count: int) -> tuple[float, ...]:
    """`count` noise levels from high down to low, at equal ratios."""
    return tuple(torch.logspace(0, 1, count, base=low / high, dtype=torch.float64).mul(high).tolist())


@dataclass(frozen=True)
class Msma:
    """Detectors fitted to the score norms of inliers.

    Args:
        detectors: by name.
        sigmas: the noise levels of the features.
        about: the model and the inliers, for the file.
    """

    detectors: Mapping[str, Detector]
    sigmas: tuple[float, ...]
    about: Mapping[str, Any]

    @classmethod
    def fit(
        cls, features: Tensor, sigmas: Sequence[float], *, about: Mapping[str, Any], seed: int = 0
    ) -> Self:
        """All detectors on the features [n, L] of inliers."""
        detectors = {name: kind.fit(features, seed=seed) for name, kind in DETECTORS.items()}
        return cls(detectors, tuple(sigmas), about)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from scoregen.training.weights import write_weights

        tensors = {
            f"{name}.{key}": value
            for name, detector in self.detectors.items()
            for key, value in detector.state_dict().items()
        }
        write_weights(path, tensors, {"msma": json.dumps({"sigmas": self.sigmas, **self.about})})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; UserError for another file."""
        from scoregen.training.weights import read_weights

        tensors, metadata = read_weights(path)
        if "msma" not in metadata:
            raise UserError(f"{path} holds no detectors; give a file of `msma fit`")
        about = json.loads(metadata["msma"])
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in DETECTORS}
        for key, value in tensors.items():
            name, _, rest = key.partition(".")
            parts[name][rest] = value
        detectors = {name: DETECTORS[name].restore(part) for name, part in parts.items()}
        return cls(detectors, tuple(about.pop("sigmas")), about)

    def __call__(self, features: Tensor) -> dict[str, Tensor]:
        """Scores [n] by detector, higher where features [n, L] are less like the inliers'."""
        return {name: detector(features) for name, detector in self.detectors.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_entry(_msma, argv)


def _msma(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.num < 1 or args.batch < 1:
        raise UserError(f"--num {args.num} --batch {args.batch}: at least 1 each")
    _fit(args) if args.command == "fit" else _score(args)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scoregen.detection.msma", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="fit detectors to the training images of a model")
    fit.add_argument("--out", required=True, type=Path, metavar="FILE")
    fit.add_argument("--num", type=int, default=10_000, help="training images (default 10,000)")
    fit.add_argument("--sigmas", default=",".join(map(str, LEVELS)), metavar="HIGH,LOW,COUNT")
    fit.add_argument("--seed", type=int, default=0)
    score = commands.add_parser("score", help="tell held-out images from other sets")
    score.add_argument("detectors", type=Path, metavar="FILE", help="what `fit` wrote")
    score.add_argument(
        "--outliers", required=True, metavar="SETS", help="names, folders or zips; uniform, gaussian"
    )
    score.add_argument("--num", type=int, default=2000, help="images of each set (default 2,000)")
    score.add_argument("--out", type=Path, metavar="FILE", help="scores of every image, as JSON")
    for command in (fit, score):
        add_model_flags(command)
    return parser


def _levels(text: str, low: float, high: float) -> tuple[float, ...]:
    try:
        top, bottom, count = text.split(",")
        sigmas = geometric(float(top), float(bottom), int(count))
    except ValueError:
        raise UserError(f"--sigmas {text}: give highest, lowest and how many, as in 2,0.02,10") from None
    if not low <= sigmas[-1] < sigmas[0] <= high or int(count) < 2:
        raise UserError(f"--sigmas {text}: two levels at least, falling, of the model's {low:g} to {high:g}")
    return sigmas


def _fit(args: argparse.Namespace) -> None:
    from scoregen.parallel import Parallel

    check_writable(args.out)
    device = Parallel(args.device).device
    source = choose_model(args.run, args.gaussian, device)
    sigmas = _levels(args.sigmas, source.denoiser.sigma_min, source.denoiser.sigma_max)
    images = draw_images(source.data(), args.num)
    print(f"{source.description}\n{len(images):,} inliers, {len(sigmas)} evaluations each", flush=True)
    features = norms_of(source.denoiser, images, sigmas, batch=args.batch, device=device)
    about = {"model": source.manifest, "inliers": len(images), "seed": args.seed}
    msma = Msma.fit(features, sigmas, about=about, seed=args.seed)
    msma.save(args.out)
    print(f"wrote {args.out}")


def _score(args: argparse.Namespace) -> None:
    from scoregen.files import write_whole
    from scoregen.parallel import Parallel

    sets = args.outliers.split(",")
    check_sets(sets)
    if args.out:
        check_writable(args.out)
    msma, device = Msma.load(args.detectors), Parallel(args.device).device
    model = msma.about["model"]
    if not (args.run or args.gaussian):
        args.run, args.gaussian = model.get("run"), model.get("gaussian")
    source = choose_model(args.run, args.gaussian, device)
    check_same_model(source.manifest, model)
    print(source.description, flush=True)
    shape = tuple(source.denoiser.shape)
    images = {"held-out": draw_images(held_out(source), args.num)}
    images |= {name: load_set(name, shape, args.num) for name in sets}
    scores = {
        name: msma(norms_of(source.denoiser, x, msma.sigmas, batch=args.batch, device=device))
        for name, x in images.items()
    }
    print_table(rows := _separations(scores), f"{len(images['held-out'])} held-out images and")
    if args.out:
        tables = {name: {k: asdict(s) for k, s in row.items()} for name, row in rows.items()}
        lists = {name: {k: s.tolist() for k, s in score.items()} for name, score in scores.items()}
        text = json.dumps({**msma.about, "sigmas": msma.sigmas, "separation": tables, "scores": lists})
        write_whole(args.out, text.encode())
        print(f"wrote {args.out}")


def _separations(scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Separation]]:
    inliers, *others = scores
    return {
        name: {kind: separate(scores[inliers][kind], score) for kind, score in scores[name].items()}
        for name in others
    }


if __name__ == "__main__":
    sys.exit(main())
