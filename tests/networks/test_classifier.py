"""Laws of the networks that judge noisy images."""

import pytest
import torch

from scoregen.errors import UserError
from scoregen.networks.classifier import Classifier, Discriminator, EncoderNetwork

BOTH = pytest.mark.parametrize("kind", [Classifier, Discriminator])
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([-1.0, 0.0, 1.0])


def make(kind: type[EncoderNetwork], *, perturbed: bool = True, num_classes: int = 4) -> EncoderNetwork:
    torch.manual_seed(0)
    network = kind(resolution=8, channels=1, num_classes=num_classes, augment_dim=2, model_channels=8)
    if perturbed:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return network.eval()


@BOTH
def test_a_new_network_has_no_opinion(kind: type[EncoderNetwork]) -> None:
    logits = make(kind, perturbed=False)(X, T)
    assert logits.shape == (3, 4 if kind is Classifier else 1)
    assert logits.abs().max() < 1e-3


@BOTH
def test_every_parameter_learns(kind: type[EncoderNetwork]) -> None:
    network = make(kind)
    network(X, T, torch.tensor([0, 1, 3]), torch.ones(3, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@BOTH
def test_the_gradient_at_a_sample_depends_on_that_sample_alone(kind: type[EncoderNetwork]) -> None:
    network, x = make(kind).train(), X.clone().requires_grad_()
    (among_others,) = torch.autograd.grad(network(x, T).sum(), x)
    (alone,) = torch.autograd.grad(network(x[:1], T[:1]).sum(), x)
    torch.testing.assert_close(among_others[:1], alone[:1], rtol=1e-4, atol=1e-6)
    assert not alone[1:].any()


def test_a_classifier_is_not_told_the_class_and_a_discriminator_is() -> None:
    cond = torch.tensor([0, 1, 3])
    classifier, discriminator = make(Classifier), make(Discriminator)
    assert torch.equal(classifier(X, T, cond), classifier(X, T))
    assert not torch.allclose(discriminator(X, T, cond), discriminator(X, T))
    assert torch.equal(discriminator(X, T, torch.full((3,), 4)), discriminator(X, T))  # the null class


@BOTH
def test_the_noise_level_matters(kind: type[EncoderNetwork]) -> None:
    network = make(kind)
    assert not torch.allclose(network(X, T), network(X, T + 1))


def test_a_classifier_needs_classes_and_a_discriminator_does_not() -> None:
    with pytest.raises(UserError, match=r"data\.conditional=true"):
        make(Classifier, num_classes=0)
    assert make(Discriminator, num_classes=0)(X, T).shape == (3, 1)
