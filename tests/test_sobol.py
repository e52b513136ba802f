"""Laws of quasi-random latents: each seed has its point, whatever the batch; together they fill space."""

import pytest
import torch

from scoregen.errors import UserError
from scoregen.rng import SampleRng
from scoregen.sobol import SobolLatents


def test_a_point_depends_on_its_seed_and_the_scramble_alone() -> None:
    whole = SobolLatents((3, 2)).points(range(64))
    latents = SobolLatents((3, 2))
    for seeds in ([5], [40, 7, 8], range(1, 64, 3), [0]):
        assert torch.equal(latents.points(seeds), whole[list(seeds)])
    assert not torch.equal(SobolLatents((3, 2), scramble=1).points(range(64)), whole)
    assert latents.points([]).shape == (0, 3, 2)


def test_points_are_standard_normal_and_their_means_vary_less_than_those_of_independent_draws() -> None:
    n, scrambles = 256, 200
    means = torch.stack([SobolLatents((4,), scramble=k).points(range(n)).mean(0) for k in range(scrambles)])
    assert float(means.square().mean().sqrt()) < 0.2 / n**0.5
    points = SobolLatents((4,)).points(range(4096)).sort(0).values
    quantiles = torch.tensor([0.025, 0.5, 0.975])
    expected = torch.special.ndtri(quantiles)[:, None]
    assert torch.allclose(points[(quantiles * 4096).long()], expected.expand(3, 4), atol=0.01)


def test_only_the_first_draw_is_quasi_random() -> None:
    seeds, latents = [3, 9], SobolLatents((2, 2))
    rng, plain = latents(seeds), SampleRng(seeds)
    assert torch.equal(rng.randn(2, 2), latents.points(seeds))
    assert torch.equal(rng.randn(5), plain.randn(5))


def test_a_sequence_has_so_many_dimensions() -> None:
    with pytest.raises(UserError, match="up to 21,201 numbers a sample; these have 49,152"):
        SobolLatents((3, 128, 128))
