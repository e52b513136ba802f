"""Laws of critics: the log density ratio is their optimum, and they look at the features they say."""

from functools import partial

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import LogUniformSigma
from scoregen.diffusion.precond import EDMPrecond
from scoregen.distillers.critics import AdversarialLoss, Critic, CriticHeads, CriticLoss, adversarial_term
from scoregen.distillers.generator import SampleWeight
from scoregen.distillers.score_divergence import SiDLoss, SIMLoss
from scoregen.errors import UserError
from scoregen.networks import ADM, MLP, DDPMpp, NCSNpp
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import EDMWeight
from scoregen.rng import BatchRng
from tests.distillers.oracle import NODE_WEIGHTS, NODES, GridRng, Toy

TOY = Toy()


def expectation(critic: object, loss: CriticLoss) -> Tensor:
    """Of the loss over real samples N(mu, s^2) and generated ones N(b, a^2)."""
    z, noise = NODES[:, :1], NODES[:, 1:]
    real, fake = TOY.mu + TOY.s * z, TOY.b + TOY.a * z
    return (NODE_WEIGHTS * loss(critic, real, None, fake, None, GridRng(noise)).value).sum()


@pytest.mark.parametrize("weight", [None, EDMWeight()])
@pytest.mark.parametrize("shared", [False, True])
def test_the_log_density_ratio_is_stationary(shared: bool, weight: EDMWeight | None) -> None:
    wrong = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def critic(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return TOY.log_ratio(x, sigma) + wrong[0] + wrong[1] * x + wrong[2] * x**2

    value = expectation(critic, CriticLoss(TOY.level, weight, shared=shared))
    (slope,) = torch.autograd.grad(value, wrong)
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64), atol=1e-8, rtol=0)


def test_shared_noise_is_shared_and_own_noise_is_not() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def critic(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        seen.append((x, sigma))
        return x

    x0, rng = torch.zeros(50, 3), partial(BatchRng, "critic", size=50)
    for shared in (True, False):
        seen.clear()
        CriticLoss(LogUniformSigma(), shared=shared)(critic, x0, None, x0, None, rng())
        assert all(torch.equal(a, b) is shared for a, b in zip(*seen, strict=True))


def test_the_penalty_is_the_squared_slope_of_the_logit() -> None:
    """|L(x) - L(x + s n)|^2 = (k s n)^2 for L = k x: k^2 s^2 in the mean."""
    plain, penalised = (
        CriticLoss(TOY.level, r1=r1, r1_scale=0.1)(
            lambda x, s, c: 3 * x, *[torch.zeros(50_000, 1), None] * 2, BatchRng("a", size=50_000)
        ).value
        for r1 in (0.0, 2.0)
    )
    assert float((penalised - plain).mean()) == pytest.approx(2 * 3**2 * 0.1**2, rel=0.03)


@pytest.mark.parametrize("base", [SiDLoss(TOY.level, SampleWeight()), SIMLoss(TOY.level)])
def test_the_adversarial_term_adds_the_divergence_that_it_is(base: SiDLoss | SIMLoss) -> None:
    """With the base's weight in each sample, at the base's noise, whatever the batch's other samples."""
    x0 = torch.randn(30, 1, dtype=torch.float64)

    def evaluate(gan_weight: float, rows: slice = slice(None)) -> Loss:
        rng = BatchRng("a", size=30, rows=rows)
        loss = AdversarialLoss(base, gan_weight)
        return loss(TOY.teacher, TOY.fake, TOY.log_ratio, x0[rows], None, rng)

    without, with_term = evaluate(0.0), evaluate(0.5)
    assert torch.equal(without.value, base(TOY.teacher, TOY.fake, x0, None, BatchRng("a", size=30)).value)
    rng = BatchRng("a", size=30)
    logits = TOY.log_ratio(x0 + TOY.sigma * rng.randn_like(x0), rng.stratified())
    term = 0.5 * without.logs["weight"] * adversarial_term(logits.clamp(-10, 10))
    torch.testing.assert_close(with_term.value, without.value + term)
    assert torch.equal(evaluate(0.5, slice(10, 20)).value, with_term.value[10:20])


UNETS = {
    "ddpmpp": (DDPMpp, {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 2}),
    "ncsnpp": (NCSNpp, {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 2}),
    "adm": (ADM, {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1}),
}


def denoiser(name: str) -> NetworkDenoiser:
    if name == "mlp":
        return NetworkDenoiser(MLP(resolution=2, channels=2, width=16, depth=3), EDMPrecond(), shape=(2,))
    build, arguments = UNETS[name]
    network = build(resolution=8, channels=3, num_classes=5, attention_resolutions=(4,), **arguments)
    return NetworkDenoiser(network, EDMPrecond(), shape=(3, 8, 8), num_classes=5).eval()


@pytest.mark.parametrize("name", [*UNETS, "mlp"])
def test_features_are_what_the_network_computes_on_its_way(name: str) -> None:
    """The output of the last block of each resolution (of each block of an MLP) in a whole forward."""
    model, seen = denoiser(name), {}
    network = model.network
    if name == "mlp":
        blocks = {f"block{i}": block for i, block in enumerate(network.blocks)}
    else:
        blocks = {tap: network.enc[f"{tap}_block{network.num_blocks - 1}"] for tap in network.taps}
    for tap, block in blocks.items():
        block.register_forward_hook(lambda module, args, out, tap=tap: seen.update({tap: out}))
    x, sigma = torch.randn(2, *model.shape), torch.tensor([0.3, 2.0])
    model(x, sigma)
    whole = dict(seen)
    features = model.features(x, sigma)
    assert features.keys() == whole.keys() == network.taps.keys()
    for tap, shape in network.taps.items():
        torch.testing.assert_close(features[tap], whole[tap])
        assert features[tap].shape == (2, *shape)


@pytest.mark.parametrize("name", [*UNETS, "mlp"])
def test_a_critic_has_one_logit_a_tap_and_depends_on_all(name: str) -> None:
    model = denoiser(name)
    critic = Critic(model, CriticHeads(model))
    x = torch.randn(2, *model.shape)
    logits = critic(x, torch.tensor(0.5))
    assert logits.shape == (2, len(model.network.taps))
    other = critic(x.roll(1, -1), torch.tensor(0.5))
    assert bool((logits != other).all())
    single = Critic(model, CriticHeads(model, taps=[list(model.network.taps)[-1]]))
    assert single(x, torch.tensor(0.5)).shape == (2, 1)


@pytest.mark.parametrize("resolution", [28, 32])
def test_heads_end_in_one_number_at_every_resolution(resolution: int) -> None:
    network = DDPMpp(
        resolution=resolution, channels=1, model_channels=4, channel_mult=(1, 1, 1), num_blocks=1,
        attention_resolutions=(),
    )  # fmt: skip
    model = NetworkDenoiser(network, EDMPrecond(), shape=network.shape)
    assert Critic(model, CriticHeads(model))(torch.randn(2, *network.shape), torch.tensor(1.0)).shape == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("trunk", "taps", "said"),
    [
        ("ddpmpp", ["16x16"], r"taps=\['16x16'\]: this network has no such features; allowed: 8x8, 4x4"),
        ("ddpmpp", [], r"taps=\[\]: a critic needs at least one of 8x8, 4x4"),
        (None, None, "GaussianDenoiser has no features that a critic could look at"),
    ],
)
def test_taps_that_do_not_exist_are_refused(trunk: str | None, taps: list[str] | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CriticHeads(TOY.teacher if trunk is None else denoiser(trunk), taps=taps)
