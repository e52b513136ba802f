"""Measurements beside training: samplers, guidance, closed forms, detectors, likelihood.

usage: python -m benchmarks.measurements NAME ... --device "a CPU (x86-64, 1 thread on 2 shared cores)"

A measurement is a list of commands of this repository, each of which writes its results to a file. They run
one after the other, in a working tree without changes, and what they wrote goes to
benchmarks/measured/NAME.json with the commit; `python -m benchmarks.ledger` makes the page of it. Models that
the commands name are runs of the ledger, made by its commands, but for those of `before`, made here where
they are missing.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured import FOLDER, Measured, Outcome, kept, save
from scoregen.errors import UserError
from scoregen.training.weights import provenance

CACHE = "--cache runs/references"  # of statistics of real images


@dataclass(frozen=True)
class Case:
    """One command, without its --out, and where a reader finds its number: see `Outcome`."""

    name: str
    command: str
    column: str = ""


Before = tuple[str, str]  # a command, and the path that it makes


@dataclass(frozen=True)
class Measurement:
    """Cases that share a table.

    Args:
        finding: a plain sentence or two on what the table says.
        before: what makes what the cases need.
    """

    title: str
    finding: str
    cases: Sequence[Case]
    before: Sequence[Before] = ()


def _evaluate(name: str, model: str, options: str, column: str = "") -> Case:
    return Case(name, f"python evaluate.py {model} {options}".strip(), column)


def _samplers(model: str, size: str, budgets: Sequence[int], names: Sequence[str]) -> list[Case]:
    """Samplers, each `NAME key=value ...`, at the same budgets of evaluations and on the same seeds."""
    return [
        _evaluate(name, model, f"{size} --nfe {nfe} --sampler {name}", f"{nfe} evaluations")
        for nfe in budgets
        for name in names
    ]


def _teleported(model: str, size: str, budgets: Sequence[int]) -> list[Case]:
    """Solvers alone and behind jumps down to several noise levels, at the same budgets of evaluations."""
    samplers = {}
    for solver, inner in INNER.items():
        samplers[solver] = solver
        for skip in (40, 20, 10, 5, 2.5):
            jump = f"teleport sigma_skip={skip:g} protocol=regrid {inner}"
            samplers[f"{solver} from {skip:g}"] = jump
    return [
        _evaluate(name, model, f"{size} --nfe {nfe} --sampler {sampler}", f"{nfe} evaluations")
        for nfe in budgets
        for name, sampler in samplers.items()
    ]


def _guided(model: str, size: str, options: Sequence[str]) -> list[Case]:
    return [_evaluate(option or "no guidance", model, f"{size} {option}") for option in options]


def _closed_form(data: str, options: Sequence[str]) -> list[Case]:
    size = f"--num 1000 --batch 250 --metrics fd_scatter,memorization {CACHE}"
    return [_evaluate(f"{data} {option}", f"--data {data}", f"{size} {option}") for option in options]


def _msma(name: str, model: str, num: int, outliers: str, count: int) -> tuple[Before, Case]:
    """Detectors fitted to `num` training images, and how they tell `count` held-out ones from other sets."""
    file, module = f"runs/{name}.msma", "python -m scoregen.detection.msma"
    fit = f"{module} fit {model} --num {num} --out {file}"
    return (fit, file), Case(name, f"{module} score {file} --outliers {outliers} --num {count}")


def _eps(name: str, model: str, count: int, attacks: str) -> tuple[Before, Case]:
    """A kernel fitted to attacked training images, and how it tells attacked held-out ones from clean."""
    file, module = f"runs/{name}.eps", "python -m scoregen.detection.eps"
    size = "--num 800 --epochs 40"
    fit = f"{module} fit --run {model} --classifier runs/{name}_classifier {size} --out {file}"
    return (fit, file), Case(name, f"{module} score {file} --num {count} {attacks}")


INNER = {"heun": "", "deis": "'inner={_target_: scoregen.samplers.adams.DEISSampler}'"}  # of teleport
DIGITS, MNIST, CIFAR = "pretrained/digits", "runs/mnist_edm", "runs/cifar_small"
JUMP = "teleport sigma_skip=10 protocol=regrid"
DETERMINISTIC = (
    *("auto", "heun", "euler", "ddim", "deis", "dpm_2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "lms"),
    *("dpm_v3", "scheduler", JUMP),
)
FEW = ("auto", "heun", "euler", "dpmpp_3m", "unipc", "dpm_v3", JUMP)
RANDOM = ("heun s_churn=10", "euler_ancestral", "dpmpp_2m_sde", "restart")
ESTIMATED = ("neighbours", "importance")
LONG = {"exponential": 200, "predictor_corrector": 1000, "langevin": 500}  # evaluations by default
GUIDED = (
    "",
    *(f"--guidance {w}" for w in (1.25, 1.5, 2, 3)),
    *(f"--guidance 2 --guidance-interval {i}" for i in ("0.2,2", "2,80")),
    *(f"--classifier runs/digits_classifier --classifier-weight {w}" for w in (0.5, 1, 2, 4)),
    *(f"--autoguidance runs/digits_weak --guidance {w}" for w in (1.5, 2, 3)),
    *(f"--autoguidance runs/digits_weak --guidance 2 --guidance-interval {i}" for i in ("0.2,2", "2,80")),
    *(f"--discriminator runs/digits_discriminator --discriminator-weight {w}" for w in (0.5, 1)),
    "--discriminator runs/digits_discriminator --sampler heun_boosted",
)
GUIDED_MNIST = (
    "",
    *(f"--classifier runs/mnist_classifier --classifier-weight {w}" for w in (0.5, 1, 2)),
    *(f"--autoguidance runs/mnist_weak --guidance {w}" for w in (1.25, 1.5, 2)),
    "--autoguidance runs/mnist_weak --guidance 2 --guidance-interval 0.2,2",
)
WEAK_MNIST = (
    "experiment=mnist_edm trainer.total=20000 schedule.rampup=2000 hooks.heldout.every=null "
    "hooks.grid.every=null name=mnist_weak"
)
DISCRIMINATOR = "experiment=digits_discriminator objective.generated=runs/discriminated/samples.npz"
CLASSIFIERS = {
    "digits": ("python train.py experiment=digits_classifier", "runs/digits_classifier"),
    "mnist": (
        "python train.py experiment=digits_classifier data=mnist data.conditional=true name=mnist_classifier",
        "runs/mnist_classifier",
    ),
}
OUTLIERS = (
    _msma("digits", f"--run {DIGITS}", 1617, "mnist,fashion_mnist,kmnist,uniform", 180),
    _msma("mnist", f"--run {MNIST}", 5000, "fashion_mnist,kmnist,digits,uniform", 500),
    _msma("cifar10", "--gaussian cifar10", 5000, "mnist,fashion_mnist,kmnist,uniform,gaussian", 500),
    _msma("cifar_small", f"--run {CIFAR}", 5000, "mnist,fashion_mnist,kmnist,uniform,gaussian", 500),
)
ATTACKS = (
    _eps("digits", DIGITS, 180, "--attacks fgsm,bim,pgd,mim --epsilons 2,4,8"),
    _eps("mnist", MNIST, 300, "--attacks fgsm,pgd --epsilons 2,4,8,16"),
)

MEASUREMENTS = {
    "digits_samplers": Measurement(
        "Samplers on the digits",
        "With 13 evaluations `auto`, which is DEIS, DPM++(2M), DPM-Solver-v3 and Heun behind a "
        "teleportation are where solvers of order two and more are with 35; DPM++(3M) and UniPC are not "
        "stable on so few levels, as on [exact denoisers](samplers.md#accuracy). DDIM is Euler's method "
        "and diffusers' scheduler is DPM++(2M), number for number. Fresh noise helps this small model: "
        "with 35 evaluations the SDE solver, churn and restart come closer to the data than any "
        "deterministic solver, the ancestral one does not.",
        [
            *_samplers(f"--run {DIGITS}", "--num 1000 --repeats 3 --batch 200", (13, 35), DETERMINISTIC),
            *_samplers(f"--run {DIGITS}", "--num 1000 --repeats 3 --batch 200", (35, 101), RANDOM),
            *(
                _evaluate(
                    f"{name}, {nfe:,}", f"--run {DIGITS}", f"--num 500 --batch 250 --sampler {name}", "more"
                )
                for name, nfe in LONG.items()
            ),
        ],
    ),
    "mnist_samplers": Measurement(
        "Samplers on MNIST",
        "With 13 evaluations Heun behind a teleportation comes closest; `auto` and Heun without it "
        "follow, alike on this one range of seeds ([three ranges](trained_solvers.md) favour `auto`). "
        "DPM++(3M) and UniPC are not stable on this model either, and Euler is far off.",
        _samplers(f"--run {MNIST}", "--num 500 --batch 100", (13,), FEW),
    ),
    "cifar_teleportation": Measurement(
        "Solvers and teleportation on CIFAR-10, with the exact score of its training images",
        "Jumps down to 40 or 20 bring DEIS with 11 evaluations closer to what it reaches with 15, and "
        "cost nothing later. From 10 down the error of the jump itself shows, and from 5 it is the "
        "largest of all, earlier than the published table of a trained network and FID has it "
        "([teleportation](teleportation.md)). Heun with 11 evaluations, six steps, is worse behind any "
        "jump: where so few levels fall matters more. An exact score returns training images, so these "
        "are distances of solvers, not of models.",
        _teleported("--data cifar10", f"--sigma-s 0 --num 500 --batch 250 {CACHE}", (11, 15, 25)),
    ),
    "cifar_trained_teleportation": Measurement(
        "Solvers and teleportation on CIFAR-10, with a small network",
        "The published table of a large network and FID ([teleportation](teleportation.md)) again, in small: "
        "Heun with few evaluations comes closer with every jump down to noise level 5, most of the way by "
        "10, and 2.5 is too low. DEIS needs none: a jump to 40 gains little, lower ones cost. With the exact "
        "score of the training images, above, jumps show their own error sooner.",
        _teleported(f"--run {CIFAR}", "--num 500 --batch 100", (11, 15)),
    ),
    "digits_guidance": Measurement(
        "Guidance on the digits",
        "A little guidance brings the samples closer to the data, more carries them away: of classifier "
        "guidance weight 0.5 is best, of autoguidance by an earlier and shorter training that between "
        "noise levels 0.2 and 2; classifier-free guidance gains nothing that the seeds do not change as "
        "much. These are two ranges of seeds. The discriminator found nothing to correct in samples "
        "drawn with 35 evaluations.",
        _guided(f"--run {DIGITS}", "--num 1000 --repeats 2 --batch 200", GUIDED),
        before=(
            CLASSIFIERS["digits"],
            ("python train.py trainer.total=20000 name=digits_weak", "runs/digits_weak"),
            (
                f"python sample.py --run {DIGITS} --seeds 10000-11616 --out runs/discriminated",
                "runs/discriminated",
            ),
            (f"python train.py {DISCRIMINATOR}", "runs/digits_discriminator"),
        ),
    ),
    "mnist_guidance": Measurement(
        "Guidance on MNIST",
        "Autoguidance by a short training of the same network brings the samples much closer to the data, "
        "for twice the evaluations; weight 2 carries them away unless it is kept between noise levels 0.2 "
        "and 2, as on the digits. A classifier, asked for classes drawn at random, only takes this model, "
        "which is told none, farther from the data. One range of seeds.",
        _guided(f"--run {MNIST}", "--num 500 --batch 100 --nfe 13 --sampler auto", GUIDED_MNIST),
        before=(CLASSIFIERS["mnist"], (f"python train.py {WEAK_MNIST}", "runs/mnist_weak")),
    ),
    "closed_form": Measurement(
        "Closed forms: nothing trained",
        "Without smoothing every sample is a training image, as the theorem says, and the distance is "
        "that of real images. How much smoothing makes new images grows with the distance between "
        "images; what is new is an average of near ones, and scores badly. The same smoothing carries "
        "samples that start from noise (`auto`) farther than those that start late, from noised data "
        "(`closed_form`). Memorization counts as "
        "copies those whose nearest training image is at most a third as far as the next, among 50,000 "
        "training images.",
        [
            *_closed_form("digits", [f"--sigma-s {s} --sampler closed_form" for s in (0, 0.3, 1, 2)]),
            *_closed_form("digits", [f"--sigma-s {s} --sampler auto" for s in (0, 0.3, 1, 2)]),
            *_closed_form("mnist", [f"--sigma-s {s} --sampler closed_form" for s in (0, 2, 5, 10)]),
            *_closed_form("cifar10", [f"--sigma-s {s} --sampler closed_form" for s in (0, 2, 5, 10)]),
            *_closed_form(
                "cifar10", [f"--estimator {e} --sigma-s 5 --sampler closed_form" for e in ESTIMATED]
            ),
        ],
    ),
    "memorisation": Measurement(
        "Memorisation",
        "No model copies: no sample is a third as far from its nearest training image as from the "
        "next, and by C_T samples are not nearer to the training images than held-out ones are.",
        [
            _evaluate("digits", f"--run {DIGITS}", "--num 1000 --batch 200 --metrics memorization"),
            _evaluate("MNIST", f"--run {MNIST}", "--num 500 --batch 100 --metrics memorization"),
            _evaluate("CIFAR-10", f"--run {CIFAR}", "--num 500 --batch 100 --metrics memorization"),
        ],
    ),
    "likelihood": Measurement(
        "Likelihood of held-out images",
        "Bits per dimension, an upper bound, of images dequantised to 256 levels. The digits have 17 "
        "levels, which a density can use in part only; MNIST's black background needs few bits. No "
        "published value of these two at this size is known to us; of CIFAR-10 large networks reach 2.99 "
        "(Song et al. 2021, arXiv 2011.13456), which a small one after an hour does not.",
        [
            _evaluate("digits", f"--run {DIGITS}", "--num 180 --batch 90 --metrics nll"),
            _evaluate("MNIST", f"--run {MNIST}", "--num 50 --batch 50 --metrics nll"),
            _evaluate("CIFAR-10", f"--run {CIFAR}", "--num 50 --batch 50 --metrics nll"),
        ],
    ),
    "outliers": Measurement(
        "Images of other data",
        "Held-out images of the model's own data against those of other sets. All detectors tell these "
        "sets apart, which are far from each other and were resized to the model's size; of the "
        "Gaussian of CIFAR-10, which needs no training, nearest neighbours of the scores do worst, mixtures "
        "best. With the small network trained on it (cifar_small) it is the other way round, the order that "
        "the source's code reports, and mixtures and flows tell less than with the Gaussian.",
        [case for _, case in OUTLIERS],
        before=[fit for fit, _ in OUTLIERS],
    ),
    "attacks": Measurement(
        "Attacked images",
        "EPS ranks nearly every attacked image above clean ones, also where the attack is too weak to "
        "change the classifier's answer; on the digits it takes 4/255 to find nearly all at one false "
        "alarm in a hundred. The classifier is the more robust for having been trained on noisy images. "
        "The norm of one score needs stronger attacks. On MNIST, whose backgrounds are exactly black, "
        "everything is found.",
        [case for _, case in ATTACKS],
        before=(*CLASSIFIERS.values(), *(fit for fit, _ in ATTACKS)),
    ),
}


def measure(measurement: Measurement, device: str) -> Measured:
    """Run what a measurement needs, then its cases."""
    for command, product in measurement.before:
        if not Path(product).exists():
            run(command)
    origin = provenance()
    if "git" not in origin or origin["git"].endswith("-dirty"):
        raise UserError(f"the sources are of commit {origin.get('git', 'unknown')}: commit first")
    return Measured(device, origin, [outcome(case) for case in measurement.cases])


def run(command: str) -> None:
    """Run a command of this repository; UserError where it fails."""
    print(f"$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{command}\n{done.stderr.strip()}")


def outcome(case: Case) -> Outcome:
    """Run one command and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        start = time.perf_counter()
        run(f"{case.command} --out {out}")
        seconds = round(time.perf_counter() - start, 1)
        return Outcome(case.name, case.column, case.command, seconds, kept(json.loads(out.read_bytes())))


def main() -> None:
    """Make the measurements that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--device", required=True, help="what runs the commands, for the reader")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; allowed: {', '.join(MEASUREMENTS)}")
    try:
        for name in args.names:
            save(FOLDER / f"{name}.json", measure(MEASUREMENTS[name], args.device))
            print(f"wrote {FOLDER / name}.json", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
