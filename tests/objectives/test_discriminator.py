"""Laws of training what guides: the minimisers are Bayes' classifier and the log density ratio."""

import json
from collections.abc import Callable
from functools import partial
from math import log, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scoregen import config
from scoregen.build import build_trainer
from scoregen.data.digits import load_digits
from scoregen.denoisers.base import Cond
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.guidance import build_guidance
from scoregen.diffusion.noise import LogUniformSigma
from scoregen.errors import UserError
from scoregen.model import ModelSpec, build_denoiser
from scoregen.objectives.base import Loss
from scoregen.objectives.classifier import ClassifierLoss
from scoregen.objectives.discriminator import DiscriminatorLoss
from scoregen.plan import plan
from scoregen.rng import BatchRng, generator
from scoregen.training.trainer import Trainer
from scoregen.training.weights import load_weights
from scoregen.validation import validate

COUNT = 200_000
SIGMA = LogUniformSigma(0.3, 3.0)
Logits = Callable[[Tensor, Tensor, Cond], Tensor]


def normal(count: int = COUNT) -> Tensor:
    return torch.randn(count, 1, generator=generator("data"), dtype=torch.float64)


def log_normal(x: Tensor, mean: float, variance: Tensor) -> Tensor:
    return -((x[:, 0] - mean) ** 2) / (2 * variance) - variance.log() / 2 - log(2 * pi) / 2


def evaluate(objective: ClassifierLoss | DiscriminatorLoss, logits: Logits, x0: Tensor, cond: Cond) -> Loss:
    return objective(logits, x0, cond, BatchRng("loss", size=len(x0)))


def slope(loss_at: Callable[[float], Loss]) -> float:
    """d loss / dt at t = 0 in standard errors of its mean."""
    change = (loss_at(0.01).value - loss_at(-0.01).value) / 0.02
    return float(change.mean() / change.std() * len(change) ** 0.5)


# Directions away from the optimum: a constant, a scale, and one that grows with the noise level.
DIRECTIONS = {
    "offset": lambda logit, sigma: torch.ones_like(logit),
    "scale": lambda logit, sigma: logit,
    "noise": lambda logit, sigma: sigma.log(),
}


@pytest.fixture
def classes() -> tuple[Tensor, Tensor]:
    """Class 0 is N(-1, 1), class 1 is N(1, 1)."""
    label = torch.arange(COUNT) % 2
    return normal() + (2 * label - 1)[:, None], label


def bayes(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """Logits [B, 2] of the exact classifier."""
    return torch.stack([log_normal(x, mean, 1 + sigma**2) for mean in (-1.0, 1.0)], 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bayes_classifier_is_stationary(direction: str, classes: tuple[Tensor, Tensor]) -> None:
    def moved(t: float, wrong: float, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        logits = bayes(x, sigma)
        away = DIRECTIONS[direction](logits[:, 1] - logits[:, 0], sigma)
        return logits + torch.stack([torch.zeros_like(away), (t + wrong) * away], 1)

    objective = ClassifierLoss(SIGMA)
    assert abs(slope(lambda t: evaluate(objective, partial(moved, t, 0.0), *classes))) < 4
    assert slope(lambda t: evaluate(objective, partial(moved, t, 0.5), *classes)) > 4


def test_the_loss_of_bayes_classifier_is_the_uncertainty_of_the_class(
    classes: tuple[Tensor, Tensor],
) -> None:
    """E[-sum_y p log p] over the same noisy samples; the share of right answers is E[max_y p]."""
    seen = []

    def watched(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        seen.append(bayes(x, sigma).softmax(1))
        return bayes(x, sigma)

    loss = evaluate(ClassifierLoss(SIGMA), watched, *classes)
    (p,) = seen
    assert float(loss.value.mean()) == pytest.approx(float(-(p * p.log()).sum(1).mean()), abs=0.005)
    assert float(loss.logs["accuracy"].mean()) == pytest.approx(float(p.amax(1).mean()), abs=0.005)
    assert SIGMA.sigma_min <= loss.sigma.min() <= loss.sigma.max() <= SIGMA.sigma_max


def save(path: Path, **arrays: Tensor) -> str:
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    return str(path)


@pytest.fixture
def against(tmp_path: Path) -> DiscriminatorLoss:
    """Real data are N(0, 1), generated ones N(0.6, 2)."""
    generated = 0.6 + 2**0.5 * torch.randn(COUNT, 1, generator=generator("generated"), dtype=torch.float64)
    return DiscriminatorLoss(save(tmp_path / "q.npz", x=generated), SIGMA)


def log_ratio(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
    """The exact logit [B, 1]."""
    return (log_normal(x, 0.0, 1 + sigma**2) - log_normal(x, 0.6, 2 + sigma**2))[:, None]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_log_density_ratio_is_stationary(direction: str, against: DiscriminatorLoss) -> None:
    def moved(t: float, wrong: float, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        logit = log_ratio(x, sigma)
        return logit + (t + wrong) * DIRECTIONS[direction](logit, sigma[:, None])

    assert abs(slope(lambda t: evaluate(against, partial(moved, t, 0.0), normal(), None))) < 4
    assert slope(lambda t: evaluate(against, partial(moved, t, 0.5), normal(), None)) > 4


def test_the_loss_of_the_log_density_ratio_is_the_divergence(against: DiscriminatorLoss) -> None:
    """ln 2 - JSD(p_sigma, q_sigma), by quadrature over sigma and x; of no opinion it is ln 2."""
    grid = torch.linspace(-25, 25, 4001, dtype=torch.float64)[:, None]
    expected = []
    for sigma in SIGMA.quantile((torch.arange(64, dtype=torch.float64) + 0.5) / 64):
        p, q = log_normal(grid, 0.0, 1 + sigma**2).exp(), log_normal(grid, 0.6, 2 + sigma**2).exp()
        divergence = (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()).sum() / 2 * 50 / 4000
        expected.append(log(2) - float(divergence))
    loss = evaluate(against, log_ratio, normal(), None)
    assert float(loss.value.mean()) == pytest.approx(sum(expected) / 64, abs=0.002)
    idle = evaluate(against, lambda x, sigma, cond: torch.zeros(len(x), 1), normal(100), None)
    assert torch.equal(idle.value, torch.full((100,), log(2)))


@pytest.fixture
def labelled(tmp_path: Path) -> DiscriminatorLoss:
    """Generated images of grey level 10 y for class y of 4."""
    label = torch.arange(40) % 4
    images = (10 * label).to(torch.uint8)[:, None, None, None].expand(40, 2, 2, 1)
    tiny = LogUniformSigma(1e-6, 2e-6)
    return DiscriminatorLoss(save(tmp_path / "l.npz", images=images, labels=label), tiny, conditional=True)


def test_images_keep_their_labels(labelled: DiscriminatorLoss) -> None:
    """Both kinds are shown with their own class, also one that no generated image is of."""
    calls = []

    def record(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        calls.append((x, cond))
        return torch.zeros(len(x), 1)

    cond = torch.tensor([0, 1, 2, 3, 4, 4])
    evaluate(labelled, record, torch.zeros(6, 1, 2, 2), cond)
    (real, real_cond), (fake, fake_cond) = calls
    assert torch.equal(real_cond, cond)
    assert real.abs().max() < 1e-4
    level = ((fake[:, 0, 0, 0] + 1) * 127.5 / 10).round().long()
    assert torch.equal(fake_cond, level)


def test_micro_batches_see_what_the_whole_batch_sees(labelled: DiscriminatorLoss) -> None:
    x0, cond = torch.zeros(8, 1, 2, 2), torch.arange(8) % 4

    def judge(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return x.flatten(1).mean(1, keepdim=True)

    whole = labelled(judge, x0, cond, BatchRng("loss", size=8)).value
    halves = [
        labelled(judge, x0[r], cond[r], BatchRng("loss", size=8, rows=r)) for r in (slice(4), slice(4, 8))
    ]
    assert torch.equal(torch.cat([half.value for half in halves]), whole)
    assert len(set(whole.tolist())) > 1


TINY = [
    "network.model_channels=8",
    "network.channel_mult=[1]",
    "network.attention_resolutions=[]",
    "device=cpu",
    "trainer.batch=16",
]
RUN = [
    *TINY,
    "trainer.total=1280",
    "hooks.status.every=640",
    "hooks.checkpoint.every=640",
    "optimizer.lr=0.01",
    "objective.sigma.sigma_max=0.1",
]


def prepare(*overrides: str) -> Trainer:
    cfg, problems = config.compose(overrides)
    config.refuse(problems + validate(cfg))
    return build_trainer(cfg)


@pytest.fixture
def black(tmp_path: Path) -> str:
    """Generated images that are all black: easy to tell from digits."""
    label = torch.arange(20) % 10
    return save(tmp_path / "black.npz", images=torch.zeros(20, 8, 8, 1, dtype=torch.uint8), labels=label)


@pytest.mark.parametrize("kind", ["classifier", "discriminator"])
def test_a_run_learns_resumes_exactly_and_guides(kind: str, black: str, tmp_path: Path) -> None:
    options = [f"experiment=digits_{kind}", *RUN]
    options += [f"objective.generated={black}"] if kind == "discriminator" else []
    whole, half, rest = (f"run_dir={tmp_path / name}" for name in ("whole", "halves", "halves"))
    assert prepare(*options, whole).run()
    stopped = prepare(*options, half, "trainer.total=640")
    assert stopped.run()
    stopped.close()
    assert prepare(*options, rest).run()
    last = "checkpoints/000000001280/model.safetensors"
    weights, resumed = (load_file(tmp_path / name / last) for name in ("whole", "halves"))
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.03
    assert rows[1]["accuracy"] > rows[0]["accuracy"]

    cfg, _ = config.compose(options)
    judge = build_denoiser(cfg, ModelSpec((1, 8, 8), 10))
    load_weights(judge, weights, "the run")
    assert isinstance(judge, NetworkClassifier)
    model, _ = config.compose(TINY)
    denoiser = build_denoiser(model, ModelSpec((1, 8, 8), 10))
    x, sigma, cond = torch.randn(4, 1, 8, 8), torch.tensor(0.5), torch.arange(4)
    with torch.no_grad():
        pushed = build_guidance(denoiser, **{kind: judge})(x, sigma, cond) - denoiser(x, sigma, cond)
    assert pushed.abs().amax((1, 2, 3)).min() > 1e-6
    assert all(p.grad is None for p in denoiser.parameters())


@pytest.mark.parametrize("kind", ["classifier", "discriminator"])
def test_a_run_is_planned_before_there_are_generated_images(kind: str) -> None:
    cfg, _ = config.compose([f"experiment=digits_{kind}"])
    assert "parameters" in plan(cfg)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=classifier"], "ClassifierLoss does not train DDPMpp"),
        (["network=classifier"], "EDMLoss does not train Classifier"),
        (["network=discriminator", "objective=classifier"], "ClassifierLoss does not train Discriminator"),
        (["experiment=digits_classifier", "data.conditional=false"], "set data.conditional=true"),
        (["experiment=digits_classifier", "trainer.label_dropout=0.1"], "only denoisers learn what no class"),
        (["experiment=digits_discriminator", "objective.generated=nowhere.npz"], "Draw samples of the model"),
        (
            ["experiment=digits_discriminator", "objective.generated=BLACK", "augment=edm"],
            "needs augment=none",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    overrides: list[str], said: str, black: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        prepare(*[o.replace("BLACK", black) for o in overrides], "device=cpu", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_generated_samples_of_another_shape_or_without_labels_are_refused(black: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples of shape \(1, 8, 8\), the data are of shape \(3, 8, 8\)"):
        evaluate(DiscriminatorLoss(black, SIGMA), bayes, torch.zeros(2, 3, 8, 8), None)
    unlabelled = save(tmp_path / "u.npz", images=load_digits().x[:5].permute(0, 2, 3, 1))
    with pytest.raises(UserError, match="has no labels"):
        DiscriminatorLoss(unlabelled, SIGMA, conditional=True)
    with pytest.raises(UserError, match=r"data\.conditional=true"):
        evaluate(ClassifierLoss(SIGMA), bayes, torch.zeros(2, 1), None)
