"""Laws of the attacks on a classifier."""

import pytest
import torch
from torch import Tensor

from scoregen.detection.attacks import ATTACKS, Attack
from scoregen.errors import UserError
from scoregen.rng import SampleRng, generator

WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0])


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key))


def linear(x: Tensor) -> Tensor:
    """Two classes, told apart by w^T x."""
    along = x.flatten(1) @ WEIGHT
    return torch.stack([-along, along], 1)


def bent(x: Tensor) -> Tensor:
    """Three classes with a curved boundary."""
    return torch.stack([x.sin().sum(1), (2 * x).cos().sum(1), x.square().sum(1)], 1)


@pytest.mark.parametrize("name", [name for name in ATTACKS if "pgd" not in name])
def test_on_a_linear_classifier_every_attack_ends_at_the_far_side_of_its_ball(name: str) -> None:
    """x - epsilon sign(w) or x - epsilon sqrt(d) w / ||w||, towards the other class."""
    attack, x = ATTACKS[name](0.01), 0.5 * normal(6, 4).clamp(-1, 1)
    side = (x @ WEIGHT).sign()[:, None]
    step = WEIGHT.sign() if attack.norm == "inf" else 2 * WEIGHT / WEIGHT.norm()
    moved = attack(linear, x, SampleRng(range(6)))
    torch.testing.assert_close(moved, x - side * 0.01 * step, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_stay_in_their_ball_and_in_range_and_raise_the_loss(name: str) -> None:
    attack, x = ATTACKS[name](0.05), normal(200, 4).clamp(-1, 1)
    moved = attack(bent, x, SampleRng(range(200)))
    change = moved - x
    size = change.abs().amax(1) if attack.norm == "inf" else change.square().mean(1).sqrt()
    assert float(size.max()) <= 0.05 * (1 + 1e-5)
    assert float(moved.abs().max()) <= 1
    answer = bent(x).argmax(1)
    before, after = (torch.nn.functional.cross_entropy(bent(z), answer) for z in (x, moved))
    assert after > before
    assert not moved.requires_grad


def test_more_steps_raise_the_loss_more() -> None:
    """In one step of 0.5 a curved loss is missed; five small ones follow it."""
    x = normal(500, 4).clamp(-1, 1)
    answer = bent(x).argmax(1)
    losses = [
        float(
            torch.nn.functional.cross_entropy(
                bent(ATTACKS[name](0.5)(bent, x, SampleRng(range(500)))), answer
            )
        )
        for name in ("fgsm", "bim")
    ]
    assert losses[1] > losses[0]


def test_momentum_goes_on_where_the_gradient_has_turned() -> None:
    """On sin the gradient turns at pi / 2, which momentum runs past."""

    def wave(x: Tensor) -> Tensor:
        return torch.cat([-(4 * x).sin(), torch.zeros_like(x)], 1)

    x = torch.full((1, 1), -0.05)  # the answer is class 0, whose loss rises up to pi / 8
    plain, running = (
        Attack(0.9, steps=6, step=0.2, decay=decay)(wave, x, SampleRng([0])) for decay in (0.0, 1.0)
    )
    assert float(plain) < 0.65 < float(running)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_depends_on_its_own_noise_only(name: str) -> None:
    attack, x = ATTACKS[name](0.1), normal(5, 4).clamp(-1, 1)
    whole = attack(bent, x, SampleRng(range(5)))
    alone = attack(bent, x[3:4], SampleRng([3]))
    torch.testing.assert_close(whole[3:4], alone, rtol=0, atol=1e-6)


def test_a_classifier_that_has_diverged_is_refused() -> None:
    with pytest.raises(UserError, match="logits are not finite"):
        ATTACKS["fgsm"](0.1)(lambda x: linear(x) / 0, normal(2, 4), SampleRng(range(2)))
