"""Laws of the detectors that are fitted to features of inliers."""

from math import e, log, pi

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoregen.detection.base import Detector
from scoregen.detection.flow import FlowDetector
from scoregen.detection.mixture import MixtureDetector, choose_size, fit_mixture
from scoregen.detection.msma import DETECTORS
from scoregen.detection.neighbours import NeighbourDetector
from scoregen.errors import UserError
from scoregen.rng import generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def ring(n: int = 600, key: str = "ring") -> Tensor:
    """Points about a half circle: no single Gaussian describes them."""
    angle = pi * torch.rand(n, generator=generator(key, "angle"), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * normal(n, 2, key=key)


FIT = {
    "gmm": lambda x: MixtureDetector.fit(x, sizes=(2, 6)),
    "flow": FlowDetector.fit,
    "knn": NeighbourDetector.fit,
}


@pytest.fixture(scope="module", params=list(DETECTORS))
def fitted(request: pytest.FixtureRequest) -> Detector:
    """Each detector, fitted to the half circle."""
    return FIT[request.param](ring())


def test_points_off_the_inliers_set_score_higher(fitted: Detector) -> None:
    held_out, inside, away = (
        ring(key="other"),
        0.3 * normal(50, 2) + torch.tensor([0.0, -0.5]),
        5 * normal(50, 2),
    )
    top = fitted(held_out).quantile(0.95)
    assert (fitted(inside) > top).double().mean() > 0.9
    assert (fitted(away) > top).double().mean() > 0.9
    assert (fitted(held_out) > fitted(ring()).quantile(0.95)).double().mean() < 0.12


def test_a_detector_is_its_tensors(fitted: Detector) -> None:
    x = ring(key="other")
    state = {key: value.clone() for key, value in fitted.state_dict().items()}
    assert torch.equal(type(fitted).restore(state)(x), fitted(x))


def test_fitting_is_a_function_of_the_seed(fitted: Detector) -> None:
    torch.randn(3)
    again = FIT[next(name for name, kind in DETECTORS.items() if isinstance(fitted, kind))](ring())
    assert torch.equal(again(ring(key="other")), fitted(ring(key="other")))


@pytest.mark.parametrize("name", DETECTORS)
def test_what_cannot_be_fitted_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="too few"):
        DETECTORS[name].fit(normal(1, 2))
    with pytest.raises(UserError, match="not finite"):
        DETECTORS[name].fit(torch.full((80, 2), float("nan")))


def test_one_component_is_the_gaussian_of_largest_likelihood() -> None:
    x = normal(500, 3) @ normal(3, 3, key="root")
    got = fit_mixture(x, 1, generator("g")).log_density(x)
    exact = MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0)).log_prob(x)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-3)


def test_components_far_apart_are_found() -> None:
    centres = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]], dtype=torch.float64)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    which = torch.multinomial(share, 4000, replacement=True, generator=generator("which"))
    mixture = fit_mixture(centres[which] + normal(4000, 2), 4, generator("g"))
    order = [int((mixture.means - centre).norm(dim=1).argmin()) for centre in centres]
    torch.testing.assert_close(mixture.means[order], centres, rtol=0, atol=0.25)
    torch.testing.assert_close(mixture.log_weights[order].exp(), share, rtol=0, atol=0.03)


def test_held_out_inliers_choose_the_number_of_components() -> None:
    two = torch.cat([normal(150, 2), normal(150, 2, key="y") + 8])
    assert choose_size(two, (1, 2, 12), generator("g")) == 2


@pytest.mark.parametrize("fit", [FIT["gmm"], FIT["flow"]])
def test_scores_are_minus_log_densities(fit: type[Detector]) -> None:
    """exp(-score) integrates to 1 over standardised features, with their Jacobian."""
    detector = fit(ring())
    axis = torch.linspace(-3, 3, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    volume = (axis[1] - axis[0]) ** 2 / detector.standard.std.prod()
    assert float((-detector(grid)).exp().sum() * volume) == pytest.approx(1, abs=0.02)


def test_the_flow_sees_earlier_features_only_and_finds_a_correlation() -> None:
    factor = torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [-0.5, 0.5, 0.4]], dtype=torch.float64)
    x = normal(4000, 3) @ factor.T
    flow = FlowDetector.fit(x)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow.network(y)[0], normal(1, 3).float())[0, :, 0]
    assert torch.equal(jacobian.triu(), torch.zeros(3, 3))
    assert jacobian[1, 0].abs() > 0.1
    entropy = 1.5 * log(2 * pi * e) + float(factor.diagonal().log().sum() - flow.standard.std.log().sum())
    test = normal(4000, 3, key="test") @ factor.T
    assert float(flow(test).mean()) == pytest.approx(entropy, abs=0.06)


def test_the_distance_is_that_to_the_fifth_neighbour() -> None:
    x, y = normal(300, 4), normal(7, 4, key="y")
    exact = (y[:, None] - x).square().sum(-1).sqrt().sort(1).values[:, 4]
    torch.testing.assert_close(NeighbourDetector.fit(x)(y), exact, rtol=0, atol=1e-12)
    # Far from the origin, where expanded squares would have lost the distances.
    torch.testing.assert_close(NeighbourDetector.fit(x + 1e7)(y + 1e7), exact, rtol=0, atol=1e-7)
