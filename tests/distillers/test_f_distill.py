"""Laws of the ratio-weighted losses: their gradients are those of f-divergences."""

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.diffusion.noise import KarrasSigma
from scoregen.distillers.divergences import DIVERGENCES, find_divergence
from scoregen.distillers.f_distill import FDistillLoss, RatioBins, RatioEstimate, Ratios
from scoregen.distillers.generator import SigmaPowerWeight, UnitWeight
from scoregen.distillers.ratio import ClassRatioLoss
from scoregen.distillers.score_divergence import DiffInstructLoss
from scoregen.errors import UserError
from scoregen.rng import BatchRng
from tests.distillers.oracle import Toy, log_normal, slopes
from tests.distillers.test_score_divergence import MIXTURE

TOY, NARROW = Toy(), Toy(a=0.4, b=0.5)
EXACT = RatioEstimate(limit=inf, low=0.0, high=inf)
REFERENCE = {
    ("softened_reverse_kl", TOY): (0.730777, -1.090232),
    ("jensen_shannon", TOY): (-0.024597, -0.385178),
    ("squared_hellinger", TOY): (0.005183, -0.219821),
    ("forward_kl", TOY): (-0.164366, -0.769231),
    ("jeffreys", TOY): (0.541814, -2.244641),
    ("neyman", NARROW): (-0.141840, -0.611727),
    ("reverse_kl", TOY): (0.706179, -1.475410),
}
CASES = [*REFERENCE, *((name, NARROW) for name in DIVERGENCES if name != "neyman")]
R = torch.logspace(-2, 2, 50, dtype=torch.float64)


def f_distill(name: str, toy: Toy) -> list[float]:
    """The gradient of the loss in score units, with the exact ratio and no normalisation."""
    loss = FDistillLoss(toy.level, name, SigmaPowerWeight(-2), 0.0, EXACT, normalise=False)
    return toy.gradient(lambda x0, rng: loss(toy.teacher, toy.fake, toy.log_ratio, x0, None, rng))


def class_ratio(name: str, toy: Toy) -> list[float]:
    loss = ClassRatioLoss(toy.level, name, limit=inf)
    return toy.gradient(lambda x0, rng: loss(toy.log_ratio, x0, None, rng))


def divergence(name: str, toy: Toy) -> list[float]:
    """The slopes of the integral of q f(p / q) over a grid."""
    x = torch.linspace(-16, 16, 20_001, dtype=torch.float64)

    def value(a: Tensor, b: Tensor) -> Tensor:
        log_p, log_q = log_normal(x, toy.mu, toy.v_p), log_normal(x, b, a**2 + toy.sigma**2)
        seen = log_q > -200  # beyond, q is 0 and p / q overflows
        r = torch.where(seen, log_p - log_q, 0.0).exp()
        return (torch.where(seen, log_q.exp() * DIVERGENCES[name].f(r), 0.0)).sum() * (x[1] - x[0])

    return slopes(value, toy.a, toy.b)


@pytest.mark.parametrize("key", REFERENCE, ids=lambda key: key[0])
def test_the_reference_gradients(key: tuple[str, Toy]) -> None:
    assert f_distill(*key) == pytest.approx(REFERENCE[key], abs=1e-6)


@pytest.mark.parametrize("key", CASES, ids=lambda key: f"{key[0]}-{key[1].a}")
def test_f_distill_descends_its_divergence(key: tuple[str, Toy]) -> None:
    assert f_distill(*key) == pytest.approx(divergence(*key), abs=1e-6)


@pytest.mark.parametrize("key", CASES, ids=lambda key: f"{key[0]}-{key[1].a}")
def test_the_class_ratio_family_needs_no_score_for_the_same_gradient(key: tuple[str, Toy]) -> None:
    assert class_ratio(*key) == pytest.approx(f_distill(*key), abs=1e-6)


def test_hellinger_neyman_and_the_kls_have_their_closed_forms() -> None:
    toy, v_p = NARROW, torch.tensor(NARROW.v_p, dtype=torch.float64)

    def v_q(a: Tensor) -> Tensor:
        return a**2 + toy.sigma**2

    def hellinger(a: Tensor, b: Tensor) -> Tensor:
        total = v_q(a) + v_p
        return 1 - (2 * (v_q(a) * v_p).sqrt() / total).sqrt() * (-((b - toy.mu) ** 2) / (4 * total)).exp()

    def neyman(a: Tensor, b: Tensor) -> Tensor:
        scale = v_p.sqrt() / (v_q(a) * (2 / v_q(a) - 1 / v_p).sqrt())
        return scale * ((b - toy.mu) ** 2 / (2 * v_p - v_q(a))).exp()

    assert f_distill("squared_hellinger", toy) == pytest.approx(slopes(hellinger, toy.a, toy.b), abs=1e-8)
    assert f_distill("neyman", toy) == pytest.approx(slopes(neyman, toy.a, toy.b), abs=1e-6)
    gap, ratio = toy.gap, toy.v_q
    forward = [toy.a * (ratio - toy.v_p) / ratio**2 - toy.a * gap**2 / ratio**2, gap / ratio]
    assert f_distill("forward_kl", toy) == pytest.approx(forward, abs=1e-8)
    assert f_distill("reverse_kl", toy) == pytest.approx([toy.a * toy.c, gap / toy.v_p], abs=1e-8)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_and_phi_follow_from_f(name: str) -> None:
    """h = f'' r^2, phi' = -h(e^l), f(1) = 0."""
    d = DIVERGENCES[name]
    second = torch.func.vmap(torch.func.grad(torch.func.grad(d.f)))(R)
    torch.testing.assert_close(d.h(R), second * R**2)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(d.phi))(R.log()), -d.h(R))
    assert float(d.f(torch.ones(()))) == pytest.approx(0, abs=1e-7)


def test_the_reverse_kl_is_diff_instruct_so_dmd2_is_a_case() -> None:
    x0 = torch.randn(40, 1, dtype=torch.float64)

    def critic(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return 3 * x

    loss = FDistillLoss(TOY.level, "reverse_kl", UnitWeight(), gan_weight=0.0)
    args = (TOY.teacher, TOY.fake)
    found = loss(*args, critic, x0, None, BatchRng("loss", size=40))
    expected = DiffInstructLoss(TOY.level)(*args, x0, None, BatchRng("loss", size=40))
    torch.testing.assert_close(found.value, expected.value, rtol=2e-6, atol=0)
    assert torch.equal(found.logs["ratio"], RatioEstimate()(3 * (x0 + 0.6 * noise_of(40))))


def noise_of(count: int) -> Tensor:
    return BatchRng("loss", size=count).randn(1, dtype=torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_are_stationary(name: str) -> None:
    toy = Toy(a=0.5, b=0.7)
    assert f_distill(name, toy) == pytest.approx([0, 0], abs=1e-12)
    assert class_ratio(name, toy) == pytest.approx([0, 0], abs=1e-12)


def test_f_distill_is_right_for_a_teacher_that_is_not_affine() -> None:
    def log_ratio(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        parts = [
            torch.tensor(w, dtype=x.dtype).log() + log_normal(x, m, s**2 + TOY.sigma**2)
            for w, m, s in ((0.4, -1.0, 0.2), (0.6, 0.8, 0.35))
        ]
        return torch.logaddexp(*parts) - log_normal(x, TOY.b, TOY.v_q)

    loss = FDistillLoss(TOY.level, "jensen_shannon", SigmaPowerWeight(-2), 0.0, EXACT, normalise=False)
    found = TOY.gradient(lambda x0, rng: loss(MIXTURE, TOY.fake, log_ratio, x0, None, rng))
    assert found == pytest.approx([-0.028340, -0.112009], abs=1e-6)


def ratios(count: int = 4000) -> Ratios:
    sigma = KarrasSigma(low=2 / 999, high=998 / 999).quantile((torch.arange(count) + 0.5).double() / count)
    return Ratios(torch.randn(count, dtype=torch.float64).exp() * (1 + sigma), sigma)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("spacing", ["linear", "karras"])
def test_h_has_mean_one_over_the_whole_batch_and_the_ratio_in_each_bin(name: str, spacing: str) -> None:
    bins, whole = RatioBins(spacing=spacing), ratios()
    bins.update(*whole)
    level = bins(*whole)
    index = torch.bucketize(whole.sigma, bins.edges.double())
    for k in range(10):
        assert float(level[index == k].mean()) == pytest.approx(1, abs=1e-5)
    loss = FDistillLoss(TOY.level, name, bins=bins)
    assert float(loss.tilt(whole, whole).mean()) == pytest.approx(1, abs=1e-5)
    rows = Ratios(*(t[:100] for t in whole))
    assert torch.equal(loss.tilt(rows, whole), loss.tilt(whole, whole)[:100])


def test_linear_bins_put_64_of_100_draws_into_the_first_and_karras_bins_an_equal_share_into_each() -> None:
    sigma = ratios().sigma
    for spacing, share in (("linear", 0.64), ("karras", 0.1)):
        index = torch.bucketize(sigma, RatioBins(spacing=spacing).edges.double())
        assert float((index == 0).double().mean()) == pytest.approx(share, abs=0.01)


def test_bins_keep_a_running_mean_and_stay_where_no_sample_falls() -> None:
    bins = RatioBins(bins=4, spacing="linear", keep=0.5)
    bins.update(torch.tensor([3.0, 5.0, 9.0]), torch.tensor([1.0, 2.0, 79.0]))
    assert bins.mean.tolist() == [2.5, 1.0, 1.0, 5.0]
    bins.update(torch.tensor([4.5]), torch.tensor([3.0]))
    assert bins.mean.tolist() == [3.5, 1.0, 1.0, 5.0]


def test_the_estimate_clamps_the_mean_logit_and_the_ratio() -> None:
    logits = torch.tensor([[0.0, 2.0], [-50.0, -50.0], [9.0, 9.0]], requires_grad=True)
    r = RatioEstimate()(logits)
    torch.testing.assert_close(r, torch.tensor([torch.e, 0.1, 20.0]))
    assert not r.requires_grad
    torch.testing.assert_close(replace(EXACT, limit=10.0)(logits)[1:].log(), torch.tensor([-10.0, 9.0]))


def test_what_is_measured_beforehand_is_what_the_loss_finds() -> None:
    loss, x0 = FDistillLoss(KarrasSigma(), "forward_kl"), torch.randn(64, 2)

    def critic(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return x / (1 + sigma[:, None])

    def teacher(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return 0.5 * x

    whole = loss.measure(critic, x0, None, BatchRng("loss", size=64))
    found = loss(teacher, teacher, critic, x0, None, BatchRng("loss", size=64))
    assert torch.equal(whole.ratio, found.logs["ratio"])
    assert torch.equal(whole.sigma, found.sigma)
    half = slice(32, 64)
    part = loss(teacher, teacher, critic, x0[half], None, BatchRng("loss", size=64, rows=half), whole)
    assert torch.equal(part.value, found.value[half])


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(UserError, match="divergence=kl: no such divergence; allowed: reverse_kl, "):
        find_divergence("kl")
