import torch

from scoregen.objectives.base import SIGMA_BINS, SIGMA_EDGES, Loss, describe_bin, sigma_bins


def test_each_loss_is_counted_once_in_the_bin_of_its_sigma() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = 10 ** (torch.rand(5000, generator=generator, dtype=torch.float64) * 7 - 4)
    value = torch.rand(5000, generator=generator, dtype=torch.float64)
    bins = sigma_bins(Loss(value, sigma))
    index = torch.bucketize(sigma, torch.tensor(SIGMA_EDGES, dtype=torch.float64), right=True)
    assert torch.equal(bins["count"], index.bincount(minlength=SIGMA_BINS).double())
    torch.testing.assert_close(bins["loss"], index.bincount(value, minlength=SIGMA_BINS))
    assert bins["bad"].sum() == 0


def test_losses_that_are_not_finite_are_counted_apart() -> None:
    sigma = torch.tensor([1e-4, 0.2, 0.2, 0.2, 2e3])
    bins = sigma_bins(Loss(torch.tensor([1.0, 2.0, torch.nan, torch.inf, 3.0]), sigma))
    assert bins["loss"].tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 3]
    assert bins["count"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert bins["bad"].tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0]


def test_bins_are_described_by_their_edges() -> None:
    assert [describe_bin(i) for i in (0, 1, 9)] == ["below 0.01", "0.01 to 0.0316", "above 100"]
