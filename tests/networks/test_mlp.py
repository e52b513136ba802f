import pytest
import torch

from scoregen.errors import UserError
from scoregen.networks import MLP


@pytest.fixture
def mlp() -> MLP:
    torch.manual_seed(0)
    network = MLP(resolution=2, channels=2, num_classes=3, augment_dim=4, width=32, depth=2).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return network


X = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
T = torch.linspace(-1, 1, 5, dtype=torch.float64)


def test_null_class_is_no_class_and_zero_augment_labels_are_none(mlp):
    assert torch.equal(mlp(X, T, torch.full((5,), 3)), mlp(X, T))
    assert torch.equal(mlp(X, T, None, torch.zeros(5, 4)), mlp(X, T))
    assert ((mlp(X, T, torch.arange(5) % 3) - mlp(X, T)).abs().amax(1) > 1e-4).all()


def test_gradients_reach_every_parameter_and_match_finite_differences(mlp):
    cond, augment = torch.arange(5) % 3, torch.ones(5, 4, dtype=torch.float64)
    mlp(X, T, cond, augment).square().sum().backward()
    assert [key for key, p in mlp.named_parameters() if p.grad is None or not p.grad.any()] == []
    x, t = X.clone().requires_grad_(), T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: mlp(x, t, cond, augment), (x, t))


def test_each_row_is_computed_as_if_alone(mlp):
    alone = torch.cat([mlp(X[i : i + 1], T[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(mlp(X, T), alone, atol=1e-12, rtol=1e-12)


def test_it_fits_a_function_of_point_and_noise_level():
    torch.manual_seed(0)
    network = MLP(resolution=2, channels=2, width=32, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x, t = torch.randn(256, 2), torch.randn(256)
    target = torch.stack([(2 * x[:, 0]).sin() * t, x[:, 0] * x[:, 1]], 1)
    first = (network(x, t) - target).square().mean().item()
    for _ in range(150):
        loss = (network(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


def test_images_are_refused():
    with pytest.raises(UserError, match="3 channels and resolution 32"):
        MLP(resolution=32, channels=3)
