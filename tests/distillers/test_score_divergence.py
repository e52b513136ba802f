"""Laws of the score-divergence losses: their gradients are those of divergences that are known."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.distillers.distances import Distance, PseudoHuberDistance, SquaredDistance
from scoregen.distillers.generator import GeneratorLoss, SampleWeight, SigmaPowerWeight, UnitWeight
from scoregen.distillers.score_divergence import DiffInstructLoss, SiDLoss, SIMLoss
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import DenoisingLoss, EDMWeight
from scoregen.rng import BatchRng
from tests.distillers.oracle import NODE_WEIGHTS, NODES, GridRng, Toy, gaussian, normal_grid, slopes

TOY = Toy()
CASES = [TOY, Toy(mu=-0.3, s=1.2, a=0.4, b=0.5, sigma=0.2), Toy(a=1.5, sigma=2.0)]
KL, FISHER = SigmaPowerWeight(-2), SigmaPowerWeight(-4)
HUBER = 0.3


def gradient(loss: GeneratorLoss, toy: Toy = TOY) -> list[float]:
    return toy.gradient(lambda x0, rng: loss(toy.teacher, toy.fake, x0, None, rng))


def huber(toy: Toy) -> SIMLoss:
    """Pseudo-Huber of the scores with c = 0.3: c_tilde = sigma^2 c and the weight sigma^-2 in x0 units."""
    return SIMLoss(toy.level, KL, PseudoHuberDistance(c=HUBER * toy.sigma**2))


LEVEL = TOY.level
REFERENCE = {
    "diff_instruct": (DiffInstructLoss(LEVEL, KL), 0.706179, -1.475410),
    "diff_instruct in x0 units": (DiffInstructLoss(LEVEL), 0.254224, -0.531148),
    "sim squared": (SIMLoss(LEVEL, FISHER, SquaredDistance()), 2.414287, -2.522068),
    "sim pseudo-huber": (huber(TOY), 0.285458, -0.751502),
    "total fisher": (SIMLoss(LEVEL, FISHER, SquaredDistance(), total=1.0), 3.522485, -4.837409),
    "sid 0": (SiDLoss(LEVEL, FISHER, alpha=0.0), 2.315341, -3.576375),
    "sid 0.5": (SiDLoss(LEVEL, FISHER, alpha=0.5), 1.761242, -2.418705),
    "sid 1": (SiDLoss(LEVEL, FISHER, alpha=1.0), 1.207144, -1.261034),
    "sid 1.2": (SiDLoss(LEVEL, FISHER, alpha=1.2), 0.985504, -0.797966),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_gradients(name: str) -> None:
    loss, *expected = REFERENCE[name]
    assert gradient(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("toy", CASES)
def test_diff_instruct_descends_the_reverse_kl(toy: Toy) -> None:
    def kl(a: Tensor, b: Tensor) -> Tensor:
        ratio = (a**2 + toy.sigma**2) / toy.v_p
        return (ratio - 1 - ratio.log()) / 2 + (b - toy.mu) ** 2 / (2 * toy.v_p)

    expected = slopes(kl, toy.a, toy.b)
    assert expected == pytest.approx([toy.a * toy.c, toy.gap / toy.v_p])
    assert gradient(DiffInstructLoss(toy.level, KL), toy) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("toy", CASES)
def test_sim_descends_the_squared_distance_with_the_law_of_the_samples_held_fixed(toy: Toy) -> None:
    def frozen(a: Tensor, b: Tensor) -> Tensor:
        """E_pi (s_q - s_p)^2 under pi = q at the toy's own parameters."""
        v_q = a**2 + toy.sigma**2
        slope, mean = 1 / toy.v_p - 1 / v_q, (toy.b - toy.mu) / toy.v_p - (toy.b - b) / v_q
        return slope**2 * toy.v_q + mean**2

    expected = slopes(frozen, toy.a, toy.b)
    assert expected == pytest.approx([4 * toy.a * toy.c / toy.v_q, 2 * toy.gap / (toy.v_p * toy.v_q)])
    loss = SIMLoss(toy.level, FISHER, SquaredDistance())
    assert gradient(loss, toy) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("toy", CASES)
def test_sim_descends_the_pseudo_huber_distance_with_the_law_of_the_samples_held_fixed(toy: Toy) -> None:
    x, weights = toy.b + toy.v_q**0.5 * NODES[:, :1], NODE_WEIGHTS

    def frozen(a: Tensor, b: Tensor) -> Tensor:
        y = (b - x) / (a**2 + toy.sigma**2) - (toy.mu - x) / toy.v_p
        return (weights * (y**2 + HUBER**2).sqrt().squeeze(1)).sum()

    assert gradient(huber(toy), toy) == pytest.approx(slopes(frozen, toy.a, toy.b), abs=1e-6)


@pytest.mark.parametrize("toy", CASES)
def test_sim_with_the_total_term_descends_the_fisher_divergence(toy: Toy) -> None:
    def fisher(a: Tensor, b: Tensor) -> Tensor:
        v_q = a**2 + toy.sigma**2
        return (v_q - toy.v_p) ** 2 / (toy.v_p**2 * v_q) + (b - toy.mu) ** 2 / toy.v_p**2

    loss = SIMLoss(toy.level, FISHER, SquaredDistance(), total=1.0)
    assert gradient(loss, toy) == pytest.approx(slopes(fisher, toy.a, toy.b), abs=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
@pytest.mark.parametrize("toy", CASES)
def test_sid_has_its_closed_form_at_every_alpha(toy: Toy, alpha: float) -> None:
    rest = 2 * (1 - alpha) * toy.c
    expected = [
        2 * toy.a * toy.c / toy.v_q + rest * toy.a * toy.c,
        toy.gap / (toy.v_p * toy.v_q) + rest * toy.gap / toy.v_p,
    ]
    assert gradient(SiDLoss(toy.level, FISHER, alpha=alpha), toy) == pytest.approx(expected, abs=1e-8)


def test_sim_of_detached_inputs_is_diff_instruct_and_so_would_be_noticed() -> None:
    """The mix-up of SIM's and Diff-Instruct's freezing, whose gradient is known."""

    def detached(denoiser: Denoise) -> Denoise:
        return lambda x, sigma, cond: denoiser(x.detach(), sigma, cond)

    loss = SIMLoss(LEVEL, FISHER, SquaredDistance())
    wrong = TOY.gradient(lambda x0, rng: loss(detached(TOY.teacher), detached(TOY.fake), x0, None, rng))
    assert wrong == pytest.approx([3.923217, -8.196721], abs=1e-6)
    assert wrong == pytest.approx([2 / TOY.sigma**2 * g for g in gradient(DiffInstructLoss(LEVEL, KL))])


@dataclass(frozen=True)
class DetachedNormaliser(PseudoHuberDistance):
    """The published mistake."""

    def _norm(self, y: Tensor) -> Tensor:
        return super()._norm(y).detach()


WRONG = replace(huber(TOY), distance=DetachedNormaliser(c=HUBER * TOY.sigma**2))


def test_a_detached_normaliser_of_pseudo_huber_is_wrong_in_one_dimension() -> None:
    assert gradient(WRONG) == pytest.approx([0.69425, -0.7515], abs=1e-5)


def test_a_detached_normaliser_of_pseudo_huber_is_nearly_right_among_many_elements() -> None:
    z, noise = torch.randn(2, 4000, 64, dtype=torch.float64)
    slope = []
    for loss in (huber(TOY), WRONG):
        a = torch.tensor(TOY.a, dtype=torch.float64, requires_grad=True)
        value = loss(TOY.teacher, TOY.fake, a * z + TOY.b, None, GridRng(noise)).value
        slope.append(float(torch.autograd.grad(value.mean(), a)[0]))
    assert slope[1] == pytest.approx(slope[0], rel=0.01)


@dataclass(frozen=True)
class Cosh(Distance):
    """A distance of a user's own."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.flatten(1).cosh().mean(1) - 1


@pytest.mark.parametrize("distance", [SquaredDistance(), PseudoHuberDistance(0.1), Cosh()])
def test_the_gradient_of_a_distance_is_its_gradient(distance: Distance) -> None:
    y = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(distance(y).sum(), y, create_graph=True)
    torch.testing.assert_close(distance.gradient(y), expected)
    torch.testing.assert_close(  # differentiable a second time
        *(torch.autograd.grad(g.square().sum(), y)[0] for g in (distance.gradient(y), expected))
    )
    assert float(distance(torch.zeros_like(y)).abs().max()) < 1e-15
    assert bool((distance(y) > 0).all())


def test_sim_descends_a_distance_of_a_users_own() -> None:
    x = TOY.b + TOY.v_q**0.5 * NODES[:, :1]

    def frozen(a: Tensor, b: Tensor) -> Tensor:
        y = (b - x) / (a**2 + TOY.sigma**2) - (TOY.mu - x) / TOY.v_p
        return (NODE_WEIGHTS * ((TOY.sigma**2 * y).cosh().squeeze(1) - 1)).sum()

    loss = SIMLoss(LEVEL, UnitWeight(), Cosh())
    assert gradient(loss) == pytest.approx(slopes(frozen, TOY.a, TOY.b), abs=1e-8)


@pytest.mark.parametrize("toy", CASES)
def test_the_fake_score_learns_the_denoiser_of_what_is_generated(toy: Toy) -> None:
    """Of the affine ones, slope a^2 / V_q and intercept sigma^2 b / V_q are where its objective rests."""
    at = torch.tensor([toy.a**2 / toy.v_q, toy.sigma**2 * toy.b / toy.v_q], dtype=torch.float64)
    at.requires_grad_()
    objective = DenoisingLoss(toy.level, EDMWeight())
    x0, rng = toy.a * NODES[:, :1] + toy.b, GridRng(NODES[:, 1:])
    value = objective(lambda x, sigma, cond: at[0] * x + at[1], x0, None, rng).value
    (slope,) = torch.autograd.grad((NODE_WEIGHTS * value).sum(), at)
    torch.testing.assert_close(slope, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("c", [0.0, -1.0])
def test_pseudo_huber_without_a_constant_is_refused_with_the_reason(c: float) -> None:
    with pytest.raises(UserError, match=r"c=-?[01] must be more than 0; .* copy of the teacher"):
        PseudoHuberDistance(c)


ALL = {
    "diff_instruct": DiffInstructLoss,
    "sid": SiDLoss,
    "sid 0.5": lambda *a: SiDLoss(*a, alpha=0.5),
    "sim squared": lambda *a: SIMLoss(*a, SquaredDistance()),
    "sim": SIMLoss,
    "sim total": lambda *a: SIMLoss(*a, SquaredDistance(), total=1.0),
}


@pytest.mark.parametrize("weight", [UnitWeight(), SampleWeight(), SigmaPowerWeight(-1)])
@pytest.mark.parametrize("name", ALL)
def test_equal_distributions_are_stationary(name: str, weight: object) -> None:
    toy = Toy(a=0.5, b=0.7)
    assert gradient(ALL[name](toy.level, weight), toy) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("weight", [UnitWeight(), SampleWeight(), SigmaPowerWeight(-1)])
def test_the_family_is_related(weight: object) -> None:
    """SIM with the squared distance is twice SiD of 1; with its total term, twice SiD of 1/2."""
    x0 = torch.randn(50, 3, 4, dtype=torch.float64)
    teacher, fake = toy_images()

    def value(loss: GeneratorLoss) -> Tensor:
        return loss(teacher, fake, x0, None, BatchRng("loss", size=50)).value

    sim = SIMLoss(LEVEL, weight, SquaredDistance())
    torch.testing.assert_close(value(sim), 2 * value(SiDLoss(LEVEL, weight, alpha=1.0)))
    torch.testing.assert_close(value(replace(sim, total=1.0)), 2 * value(SiDLoss(LEVEL, weight, alpha=0.5)))


def toy_images() -> tuple[GaussianDenoiser, GaussianDenoiser]:
    """Two Gaussians of samples of shape [3, 4]."""
    mean = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    return GaussianDenoiser(mean, torch.tensor(0.3).double()), GaussianDenoiser(
        -mean, torch.tensor(0.8).double()
    )


def test_the_sample_weight_is_dmds() -> None:
    x0 = torch.randn(50, 3, 4, dtype=torch.float64)
    teacher, fake = toy_images()

    def loss(weight: object) -> Loss:
        return DiffInstructLoss(LEVEL, weight)(teacher, fake, x0, None, BatchRng("loss", size=50))

    plain, weighted = loss(UnitWeight()), loss(SampleWeight())
    rng = BatchRng("loss", size=50)
    rng.stratified()
    target = teacher(x0 + TOY.sigma * rng.randn_like(x0), torch.tensor(TOY.sigma, dtype=torch.float64))
    torch.testing.assert_close(weighted.value, plain.value / (x0 - target).abs().mean((1, 2)))
    own = loss(lambda noised, target: 3 * noised.sigma)
    torch.testing.assert_close(own.value, 3 * plain.sigma * plain.value)


@pytest.mark.parametrize("kind", ["kl", "squared", "total"])
def test_gradients_of_a_matrix_generator(kind: str) -> None:
    """g(z) = A z + b in the plane against N(mu, Sigma); the mean over elements is half of the sum."""
    matrix = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    a, b = matrix([0.9, -0.3], [0.2, 0.6]).requires_grad_(), matrix(-0.2, 0.4).requires_grad_()
    mu, covariance, variance = (
        matrix(0.7, -0.1),
        matrix([0.5, 0.2], [0.2, 0.3]),
        TOY.sigma**2 * torch.eye(2).double(),
    )
    p = torch.linalg.inv(covariance + variance)
    q = torch.linalg.inv((a @ a.T).detach() + variance)
    c, gap = p - q, (b - mu).detach()
    loss, grad_a, grad_b = {
        "kl": (DiffInstructLoss(LEVEL, KL), c @ a, p @ gap),
        "squared": (
            SIMLoss(LEVEL, FISHER, SquaredDistance()),
            2 * (c @ q + q @ c) @ a,
            2 * q @ p @ gap,
        ),
        "total": (
            SIMLoss(LEVEL, FISHER, SquaredDistance(), total=1.0),
            2 * (p @ p - q @ q) @ a,
            2 * p @ p @ gap,
        ),
    }[kind]
    teacher = GaussianDenoiser.from_covariance(mu, covariance)
    fake = GaussianDenoiser.from_covariance(b.detach(), (a @ a.T).detach())
    # Three nodes a dimension integrate polynomials to the fifth degree.
    axis, axis_weights = matrix(-(3**0.5), 0, 3**0.5), matrix(1 / 6, 2 / 3, 1 / 6)
    nodes = torch.cartesian_prod(*[axis] * 4)
    weights = torch.cartesian_prod(*[axis_weights] * 4).prod(1)
    value = loss(teacher, fake, nodes[:, :2] @ a.T + b, None, GridRng(nodes[:, 2:])).value
    found = torch.autograd.grad(2 * (weights * value).sum(), (a, b))
    torch.testing.assert_close(found, (grad_a.detach(), grad_b.detach()), rtol=1e-8, atol=1e-10)


MIXTURE = GaussianMixtureDenoiser(
    torch.tensor([[-1.0], [0.8]], dtype=torch.float64),
    torch.tensor([0.2**2, 0.35**2], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)


def test_sim_is_right_for_a_teacher_that_is_not_affine() -> None:
    found = TOY.gradient(lambda x0, rng: huber(TOY)(MIXTURE, TOY.fake, x0, None, rng))
    assert found == pytest.approx([-0.144713, -0.159603], abs=1e-6)


@pytest.mark.parametrize(("slope", "offset"), [(0.3, 0.1), (0.8, -0.5)])
def test_diff_instruct_chases_any_affine_target(slope: float, offset: float) -> None:
    """d/da = a (a^2 / V_q - slope) / sigma^2, d/db = (b - slope b - offset) / sigma^2."""

    def target(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return slope * x + offset

    found = TOY.gradient(lambda x0, rng: DiffInstructLoss(LEVEL, KL)(target, TOY.fake, x0, None, rng))
    expected = [TOY.a * (TOY.a**2 / TOY.v_q - slope), TOY.b - slope * TOY.b - offset]
    assert found == pytest.approx([e / TOY.sigma**2 for e in expected], abs=1e-8)


def test_chasing_the_fake_score_itself_is_standing_still() -> None:
    found = TOY.gradient(lambda x0, rng: DiffInstructLoss(LEVEL)(TOY.fake, TOY.fake, x0, None, rng))
    assert found == [0, 0]


def test_the_fisher_divergence_integrates_to_the_kl_divergence_of_clean_data() -> None:
    """The integral of sigma E_q (s_q - s_p)^2 over sigma is KL(q_0 | p_0)."""
    log_sigma = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    z, weights = normal_grid(1, 0.1)
    total = 0.0
    for sigma in log_sigma.exp():
        toy = Toy(sigma=float(sigma))
        x = toy.b + toy.v_q**0.5 * z
        y = (toy.fake(x, sigma) - toy.teacher(x, sigma)) / sigma**2
        total += float(sigma**2 * (weights * SquaredDistance()(y)).sum() * 0.02)
    ratio = torch.tensor(TOY.a**2 / TOY.s**2, dtype=torch.float64)
    kl = (ratio - 1 - ratio.log()) / 2 + TOY.gap**2 / (2 * TOY.s**2)
    assert total == pytest.approx(float(kl), rel=1e-6)


def test_weights_are_not_differentiated() -> None:
    """A weight that depends on x0 changes no more than the size of each sample's gradient."""
    x0 = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    teacher, fake = gaussian(0.7, 0.5), gaussian(-0.2, 0.9)

    def slope(weight: object) -> Tensor:
        loss = SIMLoss(LEVEL, weight)(teacher, fake, x0, None, BatchRng("loss", size=20))
        return torch.autograd.grad(loss.value.sum(), x0)[0] / loss.logs["weight"][:, None]

    torch.testing.assert_close(slope(lambda noised, target: noised.x0.abs().sum(1)), slope(UnitWeight()))


def test_diff_instruct_does_not_reach_the_parameters_of_the_denoisers() -> None:
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)

    def denoiser(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return scale * x

    loss = DiffInstructLoss(LEVEL)(denoiser, gaussian(0.1, 0.4), x0, None, BatchRng("loss", size=20))
    loss.value.sum().backward()
    assert scale.grad is None
    assert x0.grad is not None
