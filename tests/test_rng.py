"""Laws of randomness: a step's draws do not depend on the split of its batch, a sample's on others."""

import pytest
import torch

from scoregen.rng import BatchRng, SampleRng, derive_seed, generator


def draws(size: int, rows: slice) -> list[torch.Tensor]:
    """One of everything, in one order."""
    rng = BatchRng(3, "step", 512, size=size, rows=rows)
    return [rng.stratified(), rng.randn(2, 3), rng.rand(), rng.randn_like(torch.zeros(size, 2)), rng.rand(4)]


@pytest.mark.parametrize("pieces", [1, 2, 4, 12])
def test_rows_of_a_batch_are_the_same_however_it_is_split(pieces: int) -> None:
    share = 12 // pieces
    parts = [draws(12, slice(i, i + share)) for i in range(0, 12, share)]
    for whole, *split in zip(draws(12, slice(None)), *parts, strict=True):
        assert torch.equal(whole, torch.cat(split))


def test_stratified_draws_fall_one_in_each_stratum() -> None:
    u = BatchRng(0, "step", 0, size=1000).stratified()
    assert torch.equal((u * 1000).floor().sort().values, torch.arange(1000, dtype=torch.float64))
    assert 0 < u.min() < u.max() < 1


def test_keys_name_different_streams_and_equal_keys_the_same() -> None:
    keys = [
        (0, "step", 0),
        (0, "step", 1),
        (1, "step", 0),
        (0, "order", 0),
        (0, "step", "0"),
        ("0", "step", 0),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(0, "step", 64) == 8556988183917004251, "on every machine"
    assert torch.equal(torch.rand(5, generator=generator(7)), torch.rand(5, generator=generator(7)))


def test_a_sample_depends_on_its_own_seed_only() -> None:
    def all_draws(seeds: list[int]) -> list[torch.Tensor]:
        rng = SampleRng(seeds)
        return [rng.randn(3, 2), rng.randint(10), rng.randn_like(torch.zeros(len(seeds), 4))]

    together, alone = all_draws([5, 0, 9]), all_draws([9])
    assert all(torch.equal(a[2:], b) for a, b in zip(together, alone, strict=True))


def test_a_sample_s_first_noise_is_that_of_a_plain_generator() -> None:
    plain = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(11))
    assert torch.equal(SampleRng([11]).randn(3, 8, 8)[0], plain)


def test_no_draw_touches_the_global_generator() -> None:
    before = torch.get_rng_state()
    draws(8, slice(None))
    SampleRng([1, 2]).randn(3)
    assert torch.equal(torch.get_rng_state(), before)
