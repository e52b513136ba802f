"""Laws of denoising likelihood score matching: Bayes' classifier is its minimum, and what shifts it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen import config
from scoregen.build import build_trainer
from scoregen.data.augment import NoAugment
from scoregen.denoisers.base import Cond, Denoiser, expand
from scoregen.denoisers.classifier import NetworkClassifier
from scoregen.denoisers.frozen import Frozen
from scoregen.denoisers.guidance import ClassifierGuidance
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import LogUniformSigma
from scoregen.diffusion.precond import EDMPrecond
from scoregen.errors import UserError
from scoregen.networks.classifier import Classifier
from scoregen.networks.mlp import MLP
from scoregen.networks.resnet import ResNetClassifier
from scoregen.objectives.base import Loss
from scoregen.objectives.classifier import ClassifierLoss
from scoregen.objectives.likelihood import LikelihoodScoreLoss
from scoregen.rng import BatchRng, generator

# Two classes N(+-mu, v0 I) in 4 dimensions with probabilities 1 - pi and pi, at one noise level.
MU = torch.tensor([1.0, 0.0, 0.5, -0.5], dtype=torch.float64)
V0, SIGMA, PI, COUNT = 0.3, 0.6, 0.35, 200_000
V = V0 + SIGMA**2
W, B = 2 * MU / V, log(PI / (1 - PI))  # Bayes' logit w . x + b; |mu_1| = |mu_0| leaves b the prior's


@dataclass(frozen=True)
class OneLevel:
    """The noise level SIGMA."""

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, SIGMA)


class Shifted(GaussianMixtureDenoiser):
    """The exact denoiser of the data, whose score is off by a constant field."""

    offset: Tensor | float = 0.0

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return super().forward(x, sigma, cond) + expand(sigma, x) ** 2 * self.offset


def prior(offset: Tensor | float = 0.0) -> Shifted:
    weights = torch.tensor([1 - PI, PI], dtype=torch.float64)
    denoiser = Shifted(torch.stack([-MU, MU]), torch.full((2,), V0, dtype=torch.float64), weights=weights)
    denoiser.offset = offset
    return denoiser


def bayes(w: Tensor = W, b: Tensor | float = B) -> Callable[..., Tensor]:
    return lambda x, sigma, cond=None: torch.stack([torch.zeros(len(x)).double(), x @ w + b], 1)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    g = generator("dlsm")
    label = (torch.rand(COUNT, generator=g) < PI).long()
    noise = torch.randn(COUNT, 4, generator=g, dtype=torch.float64)
    return (2 * label - 1)[:, None] * MU + V0**0.5 * noise, label


def loss_of(classifier: Callable[..., Tensor], data: tuple[Tensor, Tensor], **options: object) -> Loss:
    settings = {"prior": prior(), "score_power": 0.0, "cross_entropy": 0.0, **options}
    return LikelihoodScoreLoss(sigma=OneLevel(), **settings)(
        classifier, *data, BatchRng("l", size=len(data[0]))
    )


def assert_mean(values: Tensor, expected: float) -> None:
    """Within four standard errors."""
    values = values.detach()
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / len(values) ** 0.5


def test_its_value_at_bayes_classifier_is_what_no_classifier_can_explain(
    data: tuple[Tensor, Tensor],
) -> None:
    """(1 / sigma^2 - 1 / v) / 2 an element, 2.5253 over four; the published instance of the classifier."""
    torch.testing.assert_close(W, torch.tensor([3.0303, 0, 1.5152, -1.5152]).double(), rtol=1e-4, atol=1e-4)
    assert pytest.approx(-0.61904, abs=1e-5) == B
    assert pytest.approx(2.5253, abs=1e-4) == (1 / SIGMA**2 - 1 / V) / 2 * 4
    assert_mean(4 * loss_of(bayes(), data).value, 2.5253)


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_scaling_bayes_logit_raises_it(scale: float, data: tuple[Tensor, Tensor]) -> None:
    """By half the square of the change of grad log q, which is orthogonal to the rest: about 0.004."""
    x = data[0] + SIGMA * torch.randn(COUNT, 4, generator=generator("noise"), dtype=torch.float64)
    for_one = [k * W * torch.sigmoid(-k * (x @ W + B))[:, None] for k in (scale, 1.0)]
    for_none = [-k * W * torch.sigmoid(k * (x @ W + B))[:, None] for k in (scale, 1.0)]
    change = torch.where(data[1][:, None] == 1, for_one[0] - for_one[1], for_none[0] - for_none[1])
    expected = float(change.square().sum(1).mean()) / 2
    assert expected == pytest.approx(0.004, abs=5e-4)
    excess = 4 * (loss_of(bayes(scale * W, scale * B), data).value - loss_of(bayes(), data).value).detach()
    assert_mean(excess, expected)
    assert float(excess.mean()) > 4 * float(excess.std()) / COUNT**0.5


def test_it_is_the_denoising_loss_of_the_guided_denoiser(data: tuple[Tensor, Tensor]) -> None:
    """sigma^-4 / 2 (D + sigma^2 grad log q - x0)^2: guidance at w = 1 of a denoiser that stays as it is."""
    x0, label = data[0][:64], data[1][:64]
    rng = BatchRng("l", size=64)
    sigma = torch.full_like(rng.stratified(), SIGMA)
    x = x0 + SIGMA * rng.randn_like(x0)
    judge = bayes(0.7 * W, 0.2)
    judge.shape, judge.num_classes = (4,), 2  # type: ignore[attr-defined]
    guided = ClassifierGuidance(prior(), judge, 1.0)
    expected = (guided(x, sigma, label) - x0).square().mean(1) / SIGMA**4 / 2
    torch.testing.assert_close(loss_of(judge, (x0, label)).value, expected, rtol=1e-12, atol=1e-12)


def test_a_wrong_score_costs_its_square_and_leaves_cross_entropy_alone(data: tuple[Tensor, Tensor]) -> None:
    """E[grad log q + s + n / sigma | x, y] = 0 at Bayes' classifier: an offset b of s adds |b|^2 / 2."""
    offset = torch.tensor([0.2, -0.1, 0.0, 0.3], dtype=torch.float64)
    right, wrong = loss_of(bayes(), data), loss_of(bayes(), data, prior=prior(offset))
    assert_mean(4 * (wrong.value - right.value), float(offset.square().sum()) / 2)
    assert torch.equal(wrong.logs["cross_entropy"], right.logs["cross_entropy"])


def test_a_field_common_to_all_classes_cannot_absorb_a_wrong_score(data: tuple[Tensor, Tensor]) -> None:
    """A softmax does not see what is added to all logits."""
    offset = torch.tensor([0.2, -0.1, 0.0, 0.3], dtype=torch.float64)

    def absorbing(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return bayes()(x, sigma) - (x @ offset)[:, None]

    few = (data[0][:1000], data[1][:1000])
    plain, tried = (loss_of(judge, few, prior=prior(offset)).value for judge in (bayes(), absorbing))
    torch.testing.assert_close(tried, plain, rtol=1e-10, atol=1e-10)


def fit(data: tuple[Tensor, Tensor], **options: object) -> Tensor:
    """The minimiser (w, b), [5]."""
    theta = torch.cat([W, torch.tensor([B]).double()]).requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(bayes(theta[:4], theta[4]), data, **options).value.mean()
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def test_a_wrong_score_shifts_the_minimum_and_cross_entropy_anchors_it(data: tuple[Tensor, Tensor]) -> None:
    few = (data[0][:20_000], data[1][:20_000])
    offset = 0.5 * MU
    optimum = fit(few)
    scores, anchored = (fit(few, prior=prior(offset), cross_entropy=c) for c in (0.0, 10.0))
    shift, rest = (scores - optimum).norm(), (anchored - optimum).norm()
    assert shift > 0.5
    assert rest < shift / 2


def small(kind: type, **arguments: object) -> NetworkClassifier:
    torch.manual_seed(0)
    network = kind(resolution=8, channels=1, num_classes=3, **arguments)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return NetworkClassifier(network, EDMPrecond(), shape=(1, 8, 8), num_classes=3).double()


NETWORKS = {
    "resnet": lambda: small(ResNetClassifier, width=4, num_blocks=(1, 1), emb_channels=8),
    "encoder": lambda: small(Classifier, model_channels=8, channel_mult=(1, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_its_gradient_is_the_finite_difference(name: str) -> None:
    """Through the gradient with respect to x: the second derivatives of every layer."""
    classifier = NETWORKS[name]()
    g = generator("gradcheck")
    x0 = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
    normal = GaussianMixtureDenoiser(torch.zeros(1, 1, 8, 8).double(), torch.ones(1).double())
    loss = LikelihoodScoreLoss(normal, LogUniformSigma(0.1, 10.0), cross_entropy_power=0.5)
    label = torch.tensor([0, 1, 2, 0, 1, 2])

    def value() -> Tensor:
        return loss(classifier, x0, label, BatchRng("v", size=6)).value.sum()

    parameters = list(classifier.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    directions = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    slope = sum((gradient * d).sum() for gradient, d in zip(gradients, directions, strict=True))
    step, values = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
        values.append(float(value().detach()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-6)
    assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_scores_of_all_classes_cancel(name: str) -> None:
    """sum_y q(y | x) grad log q(y | x) = 0, whatever the classifier."""
    classifier, x = NETWORKS[name](), torch.randn(4, 1, 8, 8, dtype=torch.float64).requires_grad_()
    log_q = classifier(x, torch.tensor(0.5)).log_softmax(1)
    slopes = [torch.autograd.grad(log_q[:, y].sum(), x, retain_graph=True)[0] for y in range(3)]
    total = sum(log_q[:, y].exp()[:, None, None, None] * slope for y, slope in enumerate(slopes))
    assert isinstance(total, Tensor)
    assert float(slopes[0].detach().abs().max()) > 1e-3
    assert float(total.detach().abs().max()) < 1e-12


def test_beside_scores_it_is_weighted_cross_entropy(data: tuple[Tensor, Tensor]) -> None:
    x0, label = data[0][:100], data[1][:100]
    judge, rng = bayes(), BatchRng("l", size=100)
    both = loss_of(judge, (x0, label), cross_entropy=3.0, cross_entropy_power=0.5)
    entropy = ClassifierLoss(OneLevel())(judge, x0, label, rng)
    torch.testing.assert_close(both.value - both.logs["score_matching"], 3 * entropy.value / SIGMA)


def test_a_frozen_denoiser_is_neither_trained_nor_saved_but_moves_along() -> None:
    inner = NetworkDenoiser(MLP(resolution=4, channels=4, width=8, depth=1), EDMPrecond(), shape=(4,)).train()
    loss = LikelihoodScoreLoss(inner, OneLevel())
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    loss.train().to(torch.float64)
    assert not inner.training
    assert next(inner.parameters()).dtype == torch.float64
    x = torch.randn(3, 4, requires_grad=True)
    assert not Frozen(inner)(x, torch.tensor(1.0)).requires_grad


def train(run_dir: Path, *overrides: str) -> None:
    tiny = ["network.width=8", "network.num_blocks=[1, 1]", "trainer.total=128", "trainer.batch=32"]
    quiet = ["hooks.status.every=64", "hooks.checkpoint.every=64", "device=cpu"]
    cfg, problems = config.compose(
        ["experiment=digits_dlsm", *tiny, *quiet, *overrides, f"run_dir={run_dir}"]
    )
    config.refuse(problems)
    trainer = build_trainer(cfg)
    try:
        trainer.run()
    finally:
        trainer.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny score models: unconditional EDM of the digits, and one that is told the class."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["network.model_channels=8", "network.channel_mult=[1]", "network.attention_resolutions=[]"]
    hooks = ["hooks.heldout.every=null", "hooks.grid.every=null", "device=cpu"]
    short = ["trainer.total=32", "trainer.batch=32"]
    for name, overrides in {"prior": ["data.conditional=false"], "told": []}.items():
        cfg, _ = config.compose([*tiny, *hooks, *short, *overrides, f"run_dir={folder / name}"])
        trainer = build_trainer(cfg)
        trainer.run()
        trainer.close()
    return folder


def test_the_second_stage_trains_from_a_run_and_guides_it(runs: Path, tmp_path: Path) -> None:
    from scoregen.cli.source import load_judge, load_source

    for total in (128, 192):  # the second time it goes on
        train(tmp_path / "run", f"objective.prior.path={runs / 'prior'}", f"trainer.total={total}")
    cpu = torch.device("cpu")
    denoiser: Denoiser = load_source(runs / "prior", cpu).denoiser
    guided = ClassifierGuidance(denoiser, load_judge(tmp_path / "run", cpu), 1.0)
    x, sigma, three = torch.randn(2, 1, 8, 8), torch.tensor(1.0), torch.tensor([3, 3])
    assert guided.num_classes == 10
    assert not torch.equal(guided(x, sigma, three), denoiser(x, sigma))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("precond=vp", "counts noise as EDMPrecond.*the classifier as VPPrecond.*Choose precond="),
        ("sigma_data=0.5", "sigma_data=0.75.*sigma_data=0.5"),
        ("precision=bf16", "set precision=fp32"),
        ("augment=edm", "needs augment=none"),
        ("data.conditional=false", r"data\.conditional=true"),
        ("objective.prior.path=nowhere", "nowhere"),
        ("objective.prior.path=TOLD", "is told the class.*data.conditional=false"),
        ("data=checkerboard", "classes"),
    ],
)
def test_what_does_not_fit_its_prior_is_refused(override: str, said: str, runs: Path, tmp_path: Path) -> None:
    override = override.replace("TOLD", str(runs / "told"))
    with pytest.raises(UserError, match=f"(?s){said}"):
        train(tmp_path / "run", f"objective.prior.path={runs / 'prior'}", override)
    assert not (tmp_path / "run").exists()


def test_noise_levels_that_the_prior_does_not_know_are_refused() -> None:
    classifier = NETWORKS["resnet"]()
    denoiser = NetworkDenoiser(classifier.network, EDMPrecond(sigma_min=0.02), shape=(1, 8, 8))
    classifier.precond = denoiser.precond
    with pytest.raises(UserError, match=r"from 0\.01 to 10, objective\.prior is good for 0\.02 to inf"):
        LikelihoodScoreLoss(denoiser, LogUniformSigma(0.01, 10.0)).check(classifier, NoAugment())
