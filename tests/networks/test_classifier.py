"""Laws of the networks that judge noisy images."""

import pytest
import torch

from scoregen.errors import UserError
from scoregen.networks.base import Network
from scoregen.networks.classifier import Classifier, Discriminator
from scoregen.networks.resnet import ResNetClassifier

WIDTH: dict[type[Network], dict[str, object]] = {
    Classifier: {"model_channels": 8},
    Discriminator: {"model_channels": 8},
    ResNetClassifier: {"width": 8, "num_blocks": (1, 2)},
}
ALL = pytest.mark.parametrize("kind", WIDTH)
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([-1.0, 0.0, 1.0])


def make(kind: type[Network], *, perturbed: bool = True, num_classes: int = 4) -> Network:
    torch.manual_seed(0)
    network = kind(resolution=8, channels=1, num_classes=num_classes, augment_dim=2, **WIDTH[kind])
    if perturbed:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return network.eval()


@ALL
def test_a_new_network_has_no_opinion(kind: type[Network]) -> None:
    logits = make(kind, perturbed=False)(X, T)
    assert logits.shape == (3, 1 if kind is Discriminator else 4)
    assert logits.abs().max() < 1e-3


@ALL
def test_every_parameter_learns(kind: type[Network]) -> None:
    network = make(kind)
    network(X, T, torch.tensor([0, 1, 3]), torch.ones(3, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@ALL
def test_the_gradient_at_a_sample_depends_on_that_sample_alone(kind: type[Network]) -> None:
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


@ALL
def test_the_noise_level_matters(kind: type[Network]) -> None:
    network = make(kind)
    assert not torch.allclose(network(X, T), network(X, T + 1))


@pytest.mark.parametrize("kind", [Classifier, ResNetClassifier])
def test_a_classifier_needs_classes(kind: type[Network]) -> None:
    with pytest.raises(UserError, match=r"data\.conditional=true"):
        make(kind, num_classes=0)


def test_a_discriminator_needs_no_classes() -> None:
    assert make(Discriminator, num_classes=0)(X, T).shape == (3, 1)


@pytest.mark.parametrize(
    ("num_blocks", "parameters"), [((2, 2, 2, 2), 11_173_962), ((3, 4, 6, 3), 21_282_122)]
)
def test_resnets_for_32_pixels_have_their_known_size(num_blocks: tuple[int, ...], parameters: int) -> None:
    """Those of the usual CIFAR-10 forms of ResNet-18 and 34, beside what tells them the noise level."""
    with torch.device("meta"):
        network = ResNetClassifier(resolution=32, channels=3, num_classes=10, num_blocks=num_blocks)
    noise = ("map_", "affines")
    sizes = {name: p.numel() for name, p in network.named_parameters() if not name.startswith(noise)}
    assert sum(sizes.values()) == parameters
