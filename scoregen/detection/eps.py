"""Detection of adversarial images by their expected perturbation score.

python -m scoregen.detection.eps fit --run runs/mnist --classifier runs/judge --out mnist.eps
python -m scoregen.detection.eps score mnist.eps --attacks fgsm,bim,pgd --epsilons 4,8,16
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.data.codec import IDENTITY, codec_of
from scoregen.denoisers.base import as_sigma
from scoregen.detection.attacks import ATTACKS, Classify
from scoregen.detection.command import add_model_flags, check_same_model, choose_model, draw_images, held_out
from scoregen.detection.kernel import fit_kernel
from scoregen.detection.msma import norms_of
from scoregen.detection.perturbation import EpsDetector, PerturbationScore
from scoregen.detection.roc import Separation, separate
from scoregen.diffusion.schedules import vp_level
from scoregen.errors import UserError
from scoregen.rng import SampleRng

if TYPE_CHECKING:
    from scoregen.cli.source import Source

LEVEL = 2 / 255  # of uint8, in the model's range
NEARLY_CLEAN = 0.02  # noise level that a noise-conditional classifier is asked at: it has seen few lower ones


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_entry(_eps, argv)


def _eps(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.num < 8 or args.batch < 1:
        raise UserError(f"--num {args.num} --batch {args.batch}: at least 8 and 1")
    unknown = [name for name in args.attacks.split(",") if name not in ATTACKS]
    if unknown:
        raise UserError(f"attacks not known: {', '.join(unknown)}; allowed: {', '.join(ATTACKS)}")
    check_writable(args.out or Path("."))
    _fit(args) if args.command == "fit" else _score(args)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scoregen.detection.eps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="learn a kernel from attacked training images")
    fit.add_argument(
        "--classifier", required=True, metavar="PATH", help="a run of digits_classifier or alike"
    )
    fit.add_argument("--out", required=True, type=Path, metavar="FILE")
    fit.add_argument("--attacks", default="fgsm,fgsm_l2", help="to learn from (default fgsm,fgsm_l2)")
    fit.add_argument("--epsilons", default="1", help="levels of uint8 that they may change (default 1)")
    fit.add_argument("--perturbations", type=int, default=20, metavar="T", help="default 20")
    fit.add_argument("--epochs", type=int, default=60)
    fit.add_argument("--seed", type=int, default=0)
    score = commands.add_parser("score", help="tell held-out images from attacked ones")
    score.add_argument("detector", type=Path, metavar="FILE", help="what `fit` wrote")
    score.add_argument("--classifier", metavar="PATH", help="to attack (default: that of `fit`)")
    score.add_argument("--attacks", default="fgsm,bim,pgd", help=f"of {', '.join(ATTACKS)}")
    score.add_argument("--epsilons", default="1,2,4,8", help="levels of uint8 that they may change")
    score.add_argument("--out", type=Path, metavar="FILE", help="the table, as JSON")
    for command, count in ((fit, 2000), (score, 500)):
        command.add_argument("--num", type=int, default=count, help=f"images (default {count:,})")
        add_model_flags(command)
    return parser


@dataclass(frozen=True)
class _Setting:
    """The two models of a command and how they are run."""

    source: "Source"
    classify: Classify
    eps: PerturbationScore
    batch: int
    device: torch.device

    def attacked(self, images: Tensor, attack: str, level: float) -> Tensor:
        """Adversarial images; each draws from the seed of its place."""
        moved = [
            ATTACKS[attack](level * LEVEL)(self.classify, x.to(self.device), self._rng(i, len(x))).cpu()
            for i, x in enumerate(images.split(self.batch))
        ]
        return torch.cat(moved)

    def scores(self, images: Tensor) -> Tensor:
        """Their EPS."""
        return self.eps.of(images, batch=self.batch, device=self.device)

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """What the classifier takes them for."""
        return torch.cat([self.classify(x.to(self.device)).argmax(1).cpu() for x in images.split(self.batch)])

    def _rng(self, block: int, count: int) -> SampleRng:
        return SampleRng(range(block * self.batch, block * self.batch + count), self.device)


def _set_up(args: argparse.Namespace, classifier: str, perturbations: int, seed: int) -> _Setting:
    from scoregen.cli.source import load_judge
    from scoregen.parallel import Parallel

    device = Parallel(args.device).device
    source = choose_model(args.run, args.gaussian, device)
    judge = load_judge(Path(classifier), device).requires_grad_(False)
    if judge.shape != tuple(source.denoiser.shape):
        raise UserError(
            f"a classifier of {judge.shape} cannot judge the images {tuple(source.denoiser.shape)}"
        )
    if codec_of(judge) is not IDENTITY:
        raise UserError(f"{classifier} judges logarithms of images; train one that judges pixels")
    print(source.description, flush=True)
    eps = PerturbationScore(source.denoiser, perturbations, seed)
    return _Setting(source, lambda x: judge(x, as_sigma(NEARLY_CLEAN, x)), eps, args.batch, device)


def _fit(args: argparse.Namespace) -> None:
    kinds = [(attack, level) for attack in args.attacks.split(",") for level in _epsilons(args.epsilons)]
    setting = _set_up(args, args.classifier, args.perturbations, args.seed)
    images = draw_images(setting.source.data(), args.num)
    reference, learned = images.tensor_split([len(images) // 4])
    if len(learned) < len(kinds):
        raise UserError(f"{len(learned)} images to learn from cannot be shared by {len(kinds)} attacks")
    parts = learned.tensor_split(len(kinds))
    attacked = [setting.attacked(part, *kind) for part, kind in zip(parts, kinds, strict=True)]
    clean, moved = setting.scores(learned), setting.scores(torch.cat(attacked))
    kernel = fit_kernel(clean, moved, epochs=args.epochs, seed=args.seed)
    about = {
        "model": setting.source.manifest,
        "classifier": args.classifier,
        "perturbations": args.perturbations,
        "seed": args.seed,
        "attacks": kinds,
        "images": len(learned),
    }
    EpsDetector(kernel, setting.scores(reference), about).save(args.out)
    print(f"{len(learned):,} images attacked, {len(reference):,} clean for reference; wrote {args.out}")


def _score(args: argparse.Namespace) -> None:
    from scoregen.files import write_whole

    levels = _epsilons(args.epsilons)
    detector = EpsDetector.load(args.detector)
    about = detector.about
    if not (args.run or args.gaussian):
        args.run, args.gaussian = about["model"].get("run"), about["model"].get("gaussian")
    setting = _set_up(args, args.classifier or about["classifier"], about["perturbations"], about["seed"])
    check_same_model(setting.source.manifest, about["model"])
    images = draw_images(held_out(setting.source), args.num)
    answers, clean = setting.answers(images), _both(setting, detector, images)
    rows: dict[str, tuple[float, dict[str, Separation]]] = {}
    print(
        f"\n{f'{len(images)} held-out images and':<34}changed answers"
        "   EPS AUROC  TPR@1 %  TPR@5 %   S-N AUROC"
    )
    for attack in args.attacks.split(","):
        for level in levels:
            moved = setting.attacked(images, attack, level)
            changed = float((setting.answers(moved) != answers).double().mean())
            row = {k: separate(clean[k], s) for k, s in _both(setting, detector, moved).items()}
            rows[f"{attack} {level:g}/255"] = (changed, row)
            print(_line(f"{attack} {level:g}/255", changed, row), flush=True)
    if args.out:
        table = {
            name: {"changed": c, **{k: asdict(s) for k, s in r.items()}} for name, (c, r) in rows.items()
        }
        write_whole(args.out, json.dumps({**about, "num": len(images), "table": table}).encode())
        print(f"wrote {args.out}")


def _both(setting: _Setting, detector: EpsDetector, images: Tensor) -> dict[str, Tensor]:
    """The detector's scores, and the plain norms of the score at the highest level for comparison."""
    highest = [vp_level(setting.eps.count / 1000)]
    norms = norms_of(setting.source.denoiser, images, highest, batch=setting.batch, device=setting.device)
    return {"eps": detector(setting.scores(images)), "s_n": norms[:, 0]}


def _line(name: str, changed: float, row: Mapping[str, Separation]) -> str:
    eps, plain = row["eps"], row["s_n"]
    return (
        f"{name:<34}{100 * changed:>12.1f} %{100 * eps.auroc:>12.2f}{100 * eps.tpr[0]:>9.1f}"
        f"{100 * eps.tpr[1]:>9.1f}{100 * plain.auroc:>12.2f}"
    )


def _epsilons(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) <= 0:
        raise UserError(f"--epsilons {text}: give positive numbers of levels of 255, as in 1,2,4")
    return levels


if __name__ == "__main__":
    sys.exit(main())
